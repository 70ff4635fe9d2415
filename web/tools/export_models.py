"""Write the models of MT30 as self-contained XML for the browser: `make web` runs this.

dm_control's models include other files; MuJoCo's WebAssembly build is given one text.
"""

from pathlib import Path

import dm_control
from dm_control.suite import common
from lxml import etree

from tdmpc_opt.tasks.custom import three_link_reacher

MODELS = (
    *("acrobot", "ball_in_cup", "cartpole", "cheetah", "finger", "fish"),
    *("hopper", "pendulum", "reacher", "walker"),
)
FOLDER = Path(__file__).parents[1] / "public" / "models"
CHANGE = "includes written in place, textures left out"
NOTICE = (
    " From dm_control 1.0.50, Copyright 2017 The dm_control Authors, under the Apache Licence "
    "2.0 (LICENSE.dm_control.txt beside this file); changed: {change}. "
)


def self_contained(xml: bytes, change: str) -> str:
    """Return a suite model with its includes in place and a notice of licence and change.

    Its textures are left out: they take MuJoCo longer than all the rest, and the page draws
    its own.
    """
    root = etree.fromstring(xml)
    for include in root.findall("include"):
        asset = common.ASSETS[include.get("file")]
        for part in reversed(etree.fromstring(asset)):
            include.addnext(part)
        root.remove(include)
    for texture in root.findall("asset/texture"):
        texture.getparent().remove(texture)
    for material in root.findall("asset/material[@texture]"):
        del material.attrib["texture"]
    root.insert(0, etree.Comment(NOTICE.format(change=change)))
    return etree.tostring(root, encoding="unicode").strip() + "\n"


def models() -> dict[str, str]:
    """Return the XML of every model by name."""
    texts = {name: self_contained(common.read_model(f"{name}.xml"), CHANGE) for name in MODELS}
    texts["reacher_three"] = self_contained(
        three_link_reacher(), f"{CHANGE}, a third link, other lengths and joint ranges"
    )
    return texts


def main() -> None:
    """Write all models and dm_control's licence."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in models().items():
        (FOLDER / f"{name}.xml").write_text(text)
    licences = Path(dm_control.__file__).parents[1].glob("dm_control-*/licenses/LICENSE")
    (FOLDER / "LICENSE.dm_control.txt").write_text(next(licences).read_text())


if __name__ == "__main__":
    main()
