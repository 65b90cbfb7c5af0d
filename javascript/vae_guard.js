// What the page does for VAE Guard beside what its components do.
(function() {
    if (window.vaeGuardAgain_txt2img) return; // a second copy of the extension, which does nothing

    // "Decode again in full" shows the host's own progress bar. Only the gallery's files are sent, not their pictures.
    for (const tab of ["txt2img", "img2img"]) {
        window[`vaeGuardAgain_${tab}`] = function(...inputs) {
            const id = randomId(), find = (name) => gradioApp().querySelector(`#${tab}_${name}`);
            requestProgress(id, find("gallery_container"), find("gallery"), () => {});
            return [id, inputs[1], inputs[2], String(selected_gallery_index())];
        };
    }

    // What changed while another tab was open is there when the user comes to look.
    onUiTabChange(function() {
        for (const look of gradioApp().querySelectorAll(".vg-look")) {
            if (!isElsewhere(look)) look.click();
        }
    });

    // On another page, or in a closed section of ours, which looks by itself when it is opened: predicting for Memory
    // takes a second.
    function isElsewhere(look) {
        let page = look.closest(".tabitem");
        for (let outer = page; outer; outer = outer.parentElement.closest(".tabitem")) page = outer;
        return page?.style.display === "none" || look.closest("#vg_tabs > .tabitem[style*='display: none']");
    }
})();
