// Says what each control of the panel does when the pointer rests on it, as the WebUI does for its own.
(function() {
    const HINTS = {
        fallback: "Off: only the way in \"Decode by\" is tried, even if memory runs out",
        decode_by: "How this picture is decoded. Auto: in full if that fits in the free memory, else as Settings > VAE "
            + "Guard says. Every way but TAESD gives the same picture",
        threshold: "Below so much free memory (VRAM on a GPU) the full decode is not even tried",
    };

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

    onUiLoaded(function() {
        for (const tab of ["txt2img", "img2img"]) {
            for (const [name, hint] of Object.entries(HINTS)) {
                const control = gradioApp().querySelector(`#script_${tab}_vae_guard_${name}`);
                if (control) control.title = hint;
            }
            const button = gradioApp().querySelector(`#${tab}_vae_guard_again`);
            if (button) button.title = "Replaces TAESD's approximation by the exact picture, from the kept latents";
        }
    });
})();
