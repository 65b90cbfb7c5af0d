/* What the host's page offers to extensions' scripts. */
function gradioApp() {
    const root = document.getElementsByTagName("gradio-app")[0];
    return root ? root.shadowRoot || root : document;
}

var opts = {};
const uiUpdateCallbacks = [], uiAfterUpdateCallbacks = [], uiLoadedCallbacks = [];
const uiTabChangeCallbacks = [], optionsChangedCallbacks = [], optionsAvailableCallbacks = [];
let uiIsLoaded = false, afterUpdateTimer = null, currentTab = null;

function onUiUpdate(callback) { uiUpdateCallbacks.push(callback); }
function onAfterUiUpdate(callback) { uiAfterUpdateCallbacks.push(callback); }
function onUiLoaded(callback) { uiLoadedCallbacks.push(callback); }
function onUiTabChange(callback) { uiTabChangeCallbacks.push(callback); }
function onOptionsChanged(callback) { optionsChangedCallbacks.push(callback); }
function onOptionsAvailable(callback) { optionsAvailableCallbacks.push(callback); }
function get_uiCurrentTab() { return gradioApp().querySelector("#tabs > .tab-nav > button.selected"); }
function get_uiCurrentTabContent() {
    return gradioApp().querySelector("#tabs > .tabitem[id^=tab_]:not([style*='display: none'])");
}
function randomId() { return "task(" + Math.random().toString(36).slice(2, 17) + ")"; }
function requestProgress(id_task, progressbarContainer, gallery, atEnd) { setTimeout(atEnd, 1000); }
function submit(...args) { args[0] = randomId(); return args; }
function submit_img2img(...args) { return submit(...args); }
function all_gallery_buttons() {
    const found = gradioApp().querySelectorAll("[id$=_gallery].gradio-gallery .thumbnails > .thumbnail-item");
    return Array.from(found).filter((button) => button.parentElement.offsetParent);
}
function selected_gallery_index() {
    return all_gallery_buttons().findIndex((button) => button.classList.contains("selected"));
}
function restart_reload() { setTimeout(() => location.reload(), 3000); return []; }

function callAll(callbacks, argument) {
    for (const callback of callbacks) {
        try { callback(argument); } catch (error) { console.error(error); }
    }
}

document.addEventListener("DOMContentLoaded", () => {
    new MutationObserver((changes) => {
        if (!uiIsLoaded && gradioApp().querySelector("#txt2img_prompt")) {
            uiIsLoaded = true;
            const box = gradioApp().querySelector("#settings_json textarea");
            opts = box && box.value ? JSON.parse(box.value) : window.gradio_config ? settingsFromConfig() : {};
            callAll(uiLoadedCallbacks);
            callAll(optionsAvailableCallbacks);
            callAll(optionsChangedCallbacks);
        }
        callAll(uiUpdateCallbacks, changes);
        clearTimeout(afterUpdateTimer);
        afterUpdateTimer = setTimeout(() => callAll(uiAfterUpdateCallbacks), 200);
        const tab = get_uiCurrentTab();
        if (tab && tab !== currentTab) { currentTab = tab; callAll(uiTabChangeCallbacks); }
    }).observe(document.documentElement, {childList: true, subtree: true});
});

function settingsFromConfig() {
    const box = window.gradio_config.components.find((c) => c.props.elem_id === "settings_json");
    return box ? JSON.parse(box.props.value) : {};
}

onUiLoaded(() => {
    for (const {props} of window.gradio_config.components) {
        const element = props.webui_tooltip && props.elem_id && document.getElementById(props.elem_id);
        if (element) element.title = props.webui_tooltip;
    }
});
