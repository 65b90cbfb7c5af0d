// What the page does for VAE Guard beside what its components do.
(function() {
    // "Decode again in full" shows the host's own progress bar. Only the gallery's files are sent, not their pictures.
    for (const tab of ["txt2img", "img2img"]) {
        window[`vaeGuardAgain_${tab}`] = function(...inputs) {
            const id = randomId(), find = (name) => gradioApp().querySelector(`#${tab}_${name}`);
            requestProgress(id, find("gallery_container"), find("gallery"), () => {});
            return [id, ...inputs.slice(1)];
        };
    }

    // What failed a moment ago is in the list when the user comes to look.
    onUiTabChange(function() {
        const refresh = gradioApp().querySelector("#vg_unfinished_refresh");
        if (refresh && get_uiCurrentTabContent()?.id === "tab_vae_guard_tab") refresh.click();
    });
})();
