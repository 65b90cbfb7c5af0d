"""The VAE tab: the same gradio components inside the WebUI and without it.

``backend`` says what the tab needs to know of its host, ``tab.build_tab`` makes the components, and ``app.launch``
serves them for a folder of VAEs. Only modules that make components import gradio.
"""
