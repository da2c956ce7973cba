"""Makes an unpacked Debian kernel package usable: the ELF kernel out of its bzImage, and the modules that the laboratory loads.

usage: kernel.py FOLDER    writes FOLDER/vmlinux and FOLDER/modules/{*.ko,modules.dep}
"""

import lzma
import pathlib
import re
import struct
import subprocess
import sys
import zlib

# Offsets in the setup header of a bzImage: Linux, Documentation/arch/x86/boot.rst.
SETUP_SECTS = 0x1F1
PAYLOAD_OFFSET = 0x248  # followed by payload_length
SECTOR = 512

# What a domain loads; what those depend on comes with them.
XEN_MODULES = ["xen-privcmd", "xen-evtchn", "xen-gntdev", "xen-gntalloc", "xenfs"]
# Storage of dom0 (null_blk is a disk as slow as one wants), in a guest the client of an NBD export, and Linux's own block devices
# between domains, which ours are compared with. ext4 finds crc32c through an alias, which names no module.
STORAGE_MODULES = ["nvme", "ext4", "crc32c_generic", "loop", "brd", "null_blk", "nbd", "xen-blkback", "xen-blkfront"]


def payload(image: bytes) -> bytes:
    """The compressed kernel inside a bzImage."""
    setup_sectors = image[SETUP_SECTS] or 4
    offset, length = struct.unpack_from("<II", image, PAYLOAD_OFFSET)
    start = (setup_sectors + 1) * SECTOR + offset
    return image[start : start + length]


def unpack(data: bytes) -> bytes:
    """Undoes the compression, whichever of Debian's it is."""
    if data.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor().decompress(data)
    if data.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(31).decompress(data)
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        # The last four bytes are the unpacked length, which zstd does not expect.
        return subprocess.run(["zstd", "-dcq"], input=data[:-4], stdout=subprocess.PIPE, check=True).stdout
    sys.exit(f"unknown compression: starts with {data[:4].hex()}")


def kernel(folder: pathlib.Path) -> bytes:
    (image,) = (folder / "boot").glob("vmlinuz-*")
    elf = unpack(payload(image.read_bytes()))
    if not elf.startswith(b"\x7fELF"):
        sys.exit(f"{image} does not hold an ELF kernel")
    return elf


def canonical(name: str) -> str:
    """A module's name, in which - and _ are one."""
    return name.replace("-", "_")


class Modules:
    """The modules of a package, unpacked as they are asked for."""

    def __init__(self, folder: pathlib.Path):
        self.paths = {canonical(path.name.split(".ko")[0]): path for path in folder.glob("**/kernel/**/*.ko*")}
        self.unpacked: dict[str, bytes] = {}

    def dependencies(self, name: str) -> list[str]:
        """All that the module needs, each after what needs it; it is unpacked, and so are they."""
        if name not in self.unpacked:
            path = self.paths[name]
            data = path.read_bytes()
            self.unpacked[name] = data if path.suffix == ".ko" else unpack(data)
        (direct,) = re.search(rb"\0depends=([^\0]*)\0", self.unpacked[name]).groups()
        found: list[str] = []
        for needed in filter(None, direct.decode().split(",")):
            for one in [canonical(needed), *self.dependencies(canonical(needed))]:
                if one in found:
                    found.remove(one)
                found.append(one)
        return found


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    (folder / "vmlinux").write_bytes(kernel(folder))

    modules = Modules(folder)
    lines = []
    for name in map(canonical, XEN_MODULES + STORAGE_MODULES):
        modules.dependencies(name)
    for name in sorted(modules.unpacked):
        lines.append(f"{name}.ko:" + "".join(f" {needed}.ko" for needed in modules.dependencies(name)))

    target = folder / "modules"
    target.mkdir()
    for name, data in modules.unpacked.items():
        (target / f"{name}.ko").write_bytes(data)
    (target / "modules.dep").write_text("\n".join(lines) + "\n")


main()
