"""Sphinx: `make docs`."""

import pathlib
import sys

DOCS = pathlib.Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]

import pages  # noqa: E402

import pyramid_ops  # noqa: E402

project = "pyramid_ops"
author = "The pyramid_ops authors"
copyright = "The pyramid_ops authors, Apache-2.0"
release = version = pyramid_ops.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
included = [f"generated/{name}.md" for name in ("bench", "cpu", "measured")]
exclude_patterns = ["_build", "gallery", *included]
templates_path = ["_templates"]

autodoc_typehints = "none"  # the docstrings say more
autosummary_generate = True
napoleon_google_docstring = False
napoleon_use_rtype = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"

sphinx_gallery_conf = {
    "examples_dirs": ["gallery"],
    "gallery_dirs": ["generated/gallery"],
    "filename_pattern": r"/plot_",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "within_subsection_order": "FileNameSortKey",
    "show_memory": False,
    "show_signature": False,
    "reference_url": {"pyramid_ops": None},
    "doc_module": ("pyramid_ops",),
    "write_computation_times": False,
}

html_theme = "furo"
html_title = f"pyramid_ops {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sphinx = False
html_theme_options = {"top_of_page_buttons": []}


def link_names(app, document, source):
    """Names in the tables of ops and methods lead to their pages; tables stand where links lead to them."""
    if document in ("ops", "methods"):
        source[0] = pages.with_links(source[0])
    if document in ("accuracy", "proof"):
        source[0] = pages.with_results(source[0], 2 if document == "accuracy" else 1)


def setup(app):
    app.connect("config-inited", lambda app, config: pages.write(DOCS / "generated"), priority=1)
    app.connect("source-read", link_names)
