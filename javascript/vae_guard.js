// Shows "Decode again in full" only below a picture that TAESD decoded.
(function() {
    const APPROXIMATE = /VAE Guard: "?TAESD|VAE Decoder: TAESD/;

    function update() {
        for (const tab of ["txt2img", "img2img"]) {
            const button = gradioApp().querySelector(`#${tab}_vae_guard_again`);
            const info = gradioApp().querySelector(`#html_info_${tab}`);
            if (!button) continue;
            const display = info && APPROXIMATE.test(info.textContent) ? "" : "none";
            if (button.style.display !== display) button.style.display = display;
        }
    }

    onUiLoaded(update);
    onAfterUiUpdate(update);
})();
