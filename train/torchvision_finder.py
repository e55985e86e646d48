"""Lets every script of an environment import a torchvision whose compiled operators do not fit its torch.

Where torch is a CPU build and torchvision came from elsewhere, `import torchvision` ends with "operator
torchvision::nms does not exist", and with it the model classes of transformers. Headwater declares the operators before
it needs them; a user's own script cannot know that it should. `make setup` therefore looks whether the environment has
that fault, and only then writes a `.pth` line that puts this finder in place at the start of each interpreter. It costs
nothing there: torch is imported by whoever imports torchvision, not before.
"""

from __future__ import annotations

import sys

PTH = "zz_headwater_torchvision.pth"
"""Read last, when the package `headwater` can be found."""

LINE = "import headwater.train.torchvision_finder as _finder; _finder.watch()\n"


class TorchvisionFinder:
    """Declares torchvision's operators when torchvision is about to be imported; finds nothing itself."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)  # type: ignore[arg-type]
            from headwater.train.compat import declare_torchvision_operators

            declare_torchvision_operators()


def watch() -> None:
    """Puts the finder first, once."""
    if not any(isinstance(each, TorchvisionFinder) for each in sys.meta_path):
        sys.meta_path.insert(0, TorchvisionFinder())  # type: ignore[arg-type]


def mend(site_packages: str) -> bool:
    """Writes the `.pth` line if torchvision cannot be imported for want of its operators; says whether it did."""
    # Imported here, since an interpreter's start should not pay for them.
    import subprocess
    from pathlib import Path

    place = Path(site_packages) / PTH
    place.unlink(missing_ok=True)
    ended = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False)
    if "operator torchvision::" not in ended.stderr:
        return False
    place.write_text(LINE)
    return True


def main() -> None:
    """What `make setup` runs."""
    import sysconfig

    if mend(sysconfig.get_path("purelib")):
        print("torchvision does not fit this torch: its operators are declared when it is imported")
