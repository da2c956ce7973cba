"""Takes the ELF kernel out of the bzImage of an unpacked Debian kernel package, and unpacks its Xen modules.

usage: vmlinux.py FOLDER    writes FOLDER/vmlinux and FOLDER/modules/*.ko
"""

import lzma
import pathlib
import struct
import subprocess
import sys
import zlib

# Offsets in the setup header of a bzImage: Linux, Documentation/arch/x86/boot.rst.
SETUP_SECTS = 0x1F1
PAYLOAD_OFFSET = 0x248  # followed by payload_length
SECTOR = 512

XEN_MODULES = ["xen-privcmd", "xen-evtchn", "xen-gntdev", "xen-gntalloc", "xenfs"]


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
        try:
            return subprocess.run(["zstd", "-dcq"], input=data[:-4], stdout=subprocess.PIPE, check=True).stdout
        except FileNotFoundError:
            sys.exit("this kernel is packed with zstd. Do: apt-get install zstd")
    sys.exit(f"unknown compression: starts with {data[:4].hex()}")


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    (image,) = (folder / "boot").glob("vmlinuz-*")
    kernel = unpack(payload(image.read_bytes()))
    if not kernel.startswith(b"\x7fELF"):
        sys.exit(f"{image} does not hold an ELF kernel")
    (folder / "vmlinux").write_bytes(kernel)

    modules = folder / "modules"
    modules.mkdir()
    for name in XEN_MODULES:
        (packed,) = folder.glob(f"**/drivers/xen/**/{name}.ko*")
        data = packed.read_bytes()
        (modules / f"{name}.ko").write_bytes(data if packed.suffix == ".ko" else unpack(data))


main()
