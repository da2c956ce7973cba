# Fetches Xen, its tools and a kernel: Debian packages, by name, unpacked into the cache and never installed.
# Sourced by run. Sets XEN_VERSION (4.17) and KERNEL (6.1.0-56-amd64), as Debian's package lists have them.
# Leaves $LAB/xen (Xen, tools, libraries, the Xen image itself), $LAB/nbd (a client of that protocol) and
# $LAB/kernel-$KERNEL/{vmlinux,modules}.

# Everything that the laboratory uses of the host beyond a minimal Debian.
need_host_tools() {
    local missing='' pair
    for pair in apt-get apt-cache dpkg; do
        command -v $pair >/dev/null ||
            lab_failed "no $pair: the laboratory takes Xen and its kernel from Debian packages, so it needs Debian or a relative (a container will do)"
    done
    for pair in qemu-system-x86_64:qemu-system-x86 cpio:cpio python3:python3 zstd:zstd mke2fs:e2fsprogs setpriv:util-linux; do
        command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair##*:}"
    done
    [ -z "$missing" ] || lab_failed "missing on this machine:$missing. Do: apt-get install$missing"
}

# fetch_packages SERIES: of the kernel, 6.1 or 6.12.
fetch_packages() {
    local series=$1
    XEN_VERSION=$(direct_dependencies xen-system-amd64 | sed -n 's/^xen-hypervisor-\([0-9.]*\)-amd64$/\1/p' | head -1)
    KERNEL=$(direct_dependencies linux-image-amd64 "linux-image-$series-amd64" | sed -n "s/^linux-image-\(${series/./\\.}\.[0-9].*\)/\1/p" | head -1)
    [ -n "$XEN_VERSION" ] && [ -n "$KERNEL" ] || lab_failed \
        "apt knows no xen-system-amd64, or no Linux $series. Do: apt-get update (the release must be Debian 12, amd64, with its security updates)"

    unpack xen "xen-hypervisor-$XEN_VERSION-amd64" "xen-utils-$XEN_VERSION" xenstore-utils busybox-static
    unpack nbd nbd-client
    unpack "kernel-$KERNEL" "linux-image-$KERNEL"
}

# unpack FOLDER PACKAGE...: the packages, and the libraries that they need, in $LAB/FOLDER.
unpack() {
    local folder=$LAB/$1 packages stamp
    shift
    packages=$(library_closure "$@" | tr '\n' ' ')
    # Another release of Xen, or another use of the kernel, is unpacked anew.
    stamp=$packages
    [[ $folder != */kernel-* ]] || stamp="$stamp$(sha256sum <"$here/kernel.py")"
    [ "$(cat "$folder/.packages" 2>/dev/null)" = "$stamp" ] && return
    say "fetching $(echo "$packages" | wc -w) packages: $packages"
    rm -rf "$folder" "$folder.new"
    mkdir -p "$folder.new/debs"
    # shellcheck disable=SC2086 # a list of names
    (cd "$folder.new/debs" && apt-get -qq download $packages) 2> >(grep -v unsandboxed >&2) ||
        lab_failed "apt-get download failed. 404 means outdated package lists: apt-get update. Else: is the network there?"
    local deb
    for deb in "$folder.new"/debs/*.deb; do
        dpkg -x "$deb" "$folder.new" || lab_failed "cannot unpack $deb"
    done
    rm -rf "$folder.new/debs"
    if [ -d "$folder.new/boot" ]; then prepare_boot_files "$folder.new"; fi
    echo -n "$stamp" >"$folder.new/.packages"
    mv "$folder.new" "$folder"
}

# What QEMU's multiboot loader takes: an ELF file. It also saves the guests the decompression, which is slow when emulated.
prepare_boot_files() {
    if [ -e "$1/boot/xen-$XEN_VERSION-amd64.gz" ]; then
        zcat "$1/boot/xen-$XEN_VERSION-amd64.gz" >"$1/xen" || lab_failed "cannot unpack the Xen of $1"
    else
        python3 "$here/kernel.py" "$1" || lab_failed "cannot unpack the kernel of $1"
    fi
}

# The packages given and every library under them. Xen's tools written in Python and their interpreter are left out.
library_closure() {
    local all new
    all=$(printf '%s\n' "$@" | sort)
    new=$all
    while [ -n "$new" ]; do
        # shellcheck disable=SC2086 # a list of names
        new=$(comm -13 <(echo "$all") <(direct_dependencies $new | grep -E '^z?lib' | sort -u))
        all=$(printf '%s\n%s\n' "$all" "$new" | sed '/^$/d' | sort -u)
    done
    echo "$all"
}

direct_dependencies() {
    apt-cache depends --important "$@" 2>/dev/null | sed -nE 's/^[ |]*(Pre)?Depends: ([^<]*)$/\2/p'
}
