# make demo   encode a photo with the bundled VAE and decode it by every route, under a small memory budget
# make test   everything that CI checks: ruff, mypy, pytest
# make quick  ruff, mypy and the tests that need no WebUI and take no long time: a minute on two cores
# make fix    format the code, and mend what ruff can mend
# make test-avx2
#             the tests of pictures and decodes, computed as on an x86 CPU that has AVX2 and no AVX-512
# make test-gradio4
#             the tests of the page with gradio 4.40, as in Forge
# make test-host WEBUI_DIR=/path/to/stable-diffusion-webui WEBUI_PYTHON=/path/to/its/venv/bin/python
#             the tests of tests/webui against a real WebUI, which is only read; its environment must be ready, the
#             CLIP tokenizer's files included (HF_HOME)
#
# All set up .venv first, and again whenever the requirements change. Settings (see tests/setup_env.py):
#   PYTHON=/path/to/python3.11       the interpreter for .venv
#   TORCH_SPEC=torch==2.1.2          another PyTorch
#   PIP_TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"
#                                    on Linux without an NVIDIA card: PyTorch's CPU build, 10x smaller than PyPI's

.PHONY: demo test quick fix test-avx2 test-gradio4 test-host check setup-demo setup-test clean
export TORCH_SPEC PIP_TORCH_ARGS

# The WebUI runs on 3.10 and 3.11, so those come first; pyenv's shims may hide the system's, hence the full paths.
CANDIDATES := python3.11 python3.10 /usr/bin/python3.11 /usr/bin/python3.10 python3.12 python3.13 python3 python
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))
PYTHON ?= $(shell for p in $(CANDIDATES); do $$p -c '$(USABLE)' >/dev/null 2>&1 && echo $$p && break; done)
VENV_PYTHON := .venv/bin/python

demo: setup-demo
	$(VENV_PYTHON) -m vae_lib demo

test: setup-test check

PICTURES := tests/device tests/engine tests/planning tests/decode tests/networks tests/data tests/checkpoints/test_load.py tests/cli/test_decode.py \
	tests/webui/test_pictures.py tests/webui/test_sd3.py tests/webui/test_vae_files.py tests/webui/test_lowvram.py

test-avx2: setup-test
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(VENV_PYTHON) -m pytest $(PICTURES)

PAGE := tests/ui tests/webui/test_browser.py tests/webui/test_tab.py tests/webui/test_downloads_page.py \
	tests/webui/test_decode_again.py::test_every_picture_in_the_gallery_is_put_right_at_its_place

test-gradio4: setup-test
	PYTHONPATH="$(CURDIR)/.venv/gradio4" $(VENV_PYTHON) -m pytest $(PAGE)

test-host: setup-test
	@test -d "$(WEBUI_DIR)" -a -x "$(WEBUI_PYTHON)" || { echo "Set WEBUI_DIR to a checkout of the WebUI and WEBUI_PYTHON \
	to the python of its environment: make test-host WEBUI_DIR=... WEBUI_PYTHON=..." >&2; exit 1; }
	WEBUI_DIR="$(WEBUI_DIR)" WEBUI_PYTHON="$(WEBUI_PYTHON)" $(VENV_PYTHON) -m pytest tests/webui

quick: setup-test
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy
	$(VENV_PYTHON) -m pytest -q -m "not slow" --ignore=tests/webui --numprocesses=2

fix: setup-test
	$(VENV_PYTHON) -m ruff check --fix .
	$(VENV_PYTHON) -m ruff format .

check:
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy
	$(MAKE) --no-print-directory test-gradio4
	$(VENV_PYTHON) -m pytest

setup-demo setup-test: setup-%:
	@test -n "$(PYTHON)" || { echo "No Python 3.10 or newer with the venv module was found: install Python 3.11 \
	(on Debian and Ubuntu also python3.11-venv), or run make with PYTHON=/path/to/python3.11." >&2; exit 1; }
	@$(PYTHON) tests/setup_env.py $*

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis out
