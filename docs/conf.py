"""How the site is built: `nox -s docs`. The pages in Chinese, in docs/zh, are a site of their own inside it."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "docs" / "_extensions"), str(ROOT)]
sys.setrecursionlimit(
    10_000
)  # Sphinx pickles a page as a tree; that of a long table is deep

from settings import settings  # noqa: E402

chinese = tags.has("zh")  # type: ignore[name-defined]  # noqa: F821
site = settings(ROOT)

project, author = "bertology", "the bertology authors"
copyright = author
version = release = site.version
language = "zh_CN" if chinese else "en"

extensions = ["myst_nb", "name_links", "sphinx_copybutton", "sphinx_design"]
exclude_patterns = ["_*"]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
nb_execution_mode = (
    "off"  # what the guides print is stored in them, see tests/helpers/pages.py
)

if chinese:
    # [words](en:limits) is a link to the page limits of the English site.
    myst_url_schemes = {
        "http": None,
        "https": None,
        "en": {"url": "../{{path}}.html"},
    }
else:
    extensions += [
        "sphinx.ext.autodoc",
        "sphinx.ext.napoleon",
        "sphinx.ext.viewcode",
        "docstrings",
        "notebooks",
    ]
    exclude_patterns += ["zh"]
    autodoc_default_options = {"members": True}
    autodoc_inherit_docstrings = (
        False  # what a class does as its base does is told at the base
    )
    autodoc_member_order = "bysource"
    autodoc_preserve_defaults = True
    autodoc_typehints_format = "short"
    napoleon_numpy_docstring = False
    python_maximum_signature_line_length = 88
    python_use_unqualified_type_names = True
    toc_object_entries_show_parents = "hide"

REPOSITORY_ICON = {
    "name": "Repository",
    "url": site.repository,
    "icon": "fa-solid fa-code-branch",
}
html_theme = "pydata_sphinx_theme"
html_title = "bertology"
html_baseurl = site.url and site.url + ("zh/" if chinese else "")
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = [("chinese_search.js", {"priority": 100})] if chinese else []
html_extra_path = [] if chinese else ["versions.json"]
templates_path = ["_templates"]
# The page of a server for addresses that do not exist; its links start from `html_baseurl`, or from the root.
html_additional_pages = {} if chinese else {"404": "404.html"}
html_sidebars = {
    name: []
    for name in [
        "index",
        "quickstart",
        *(["data", "faq"] if chinese else ["gallery", "404"]),
    ]
}
html_show_sourcelink = html_copy_source = False
html_theme_options = {
    "navbar_align": "left",
    "navbar_start": ["navbar-logo"],
    "navbar_end": [
        "version-switcher",
        "language",
        "theme-switcher",
        "navbar-icon-links",
    ],
    "header_links_before_dropdown": 6,
    "show_toc_level": 2,
    "switcher": {
        "json_url": f"{site.url}versions.json" if site.url else "versions.json",
        "version_match": version,
    },
    "check_switcher": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc", "edit-this-page"],
    "use_edit_page_button": bool(site.repository),
    "icon_links": [REPOSITORY_ICON] if site.repository else [],
}
html_context = {
    "html_baseurl": html_baseurl,
    "edit_page_url_template": site.repository
    + "/edit/main/docs/"
    + ("zh/" if chinese else "")
    + "{{ file_name }}",
    "translated": [page.stem for page in (ROOT / "docs" / "zh").glob("*.md")],
}
