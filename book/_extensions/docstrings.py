"""Sphinx extension: our plain-text docstrings on the API page.

Docstrings are written to be read in `help()`: formulas are indented,
and `*`, `_` and single back-quotes stand for themselves.  Before
napoleon sees them, formulas become literal blocks, back-quoted code
becomes code, and other marks of reStructuredText are escaped.
"""

import re

FIELDS = re.compile(r"^(Promise|Cost|Source|Chapter): ")
SECTION = re.compile(r"^[A-Z]\w+:$")
MARKS = re.compile(r"([*|\\]|_(?!\w))")


def inline(line):
    """One line of prose as reStructuredText."""
    parts = re.split(r"`+([^`]+)`+", line)
    for i, part in enumerate(parts):
        parts[i] = f"``{part}``" if i % 2 else MARKS.sub(r"\\\1", part)
    return "".join(parts)


def translate(app, what, name, obj, options, lines):
    """Rewrite the lines of one docstring in place."""
    out, in_section, in_formula = [], False, False
    if what == "property":  # napoleon would read `type: description`
        lines[0] = lines[0].replace(": ", ", ")
    for line in lines:
        indented = line.startswith("    ")
        if SECTION.match(line):
            in_section = True
        elif line and not indented:
            in_section = False
        if indented and not in_section:
            if not in_formula:
                out += [".. code-block:: text", ""]
            in_formula = True
            out.append(line)
            continue
        if line:
            in_formula = False
        field = FIELDS.match(line)
        if field:
            rest = inline(line[field.end() :])
            out += ["", f"**{field[1]}:** {rest}"]
        else:
            out.append(inline(line))
    lines[:] = out


def setup(app):
    """Run before napoleon."""
    app.connect("autodoc-process-docstring", translate, priority=100)
    return {"parallel_read_safe": True}
