# Builds the two base images (initramfs archives) from the unpacked packages: one for dom0, one for the guest.
# Sourced by run. They hold files of packages alone; inits, scenarios and programs come with each boot (boot.sh).
# Leaves $LAB/images-$KERNEL/{dom0,domu}.cpio.

build_base_images() {
    IMAGES=$LAB/images-$KERNEL
    # Built again when the packages or this file changed.
    local stamp
    stamp=$(cat "$LAB"/{root,nbd}/.packages "$LAB/kernel-$KERNEL/.packages" "$here/images.sh" | sha256sum)
    [ "$(cat "$IMAGES/.stamp" 2>/dev/null)" = "$stamp" ] && return
    say "building the images of dom0 and the guest"
    rm -rf "$IMAGES"
    mkdir -p "$IMAGES"
    (
        set -e
        common_files "$IMAGES/dom0"
        dom0_files "$IMAGES/dom0"
        common_files "$IMAGES/domu"
        domu_files "$IMAGES/domu"
        for domain in dom0 domu; do
            archive "$IMAGES/$domain" >"$IMAGES/$domain.cpio"
            rm -rf "${IMAGES:?}/$domain"
        done
    ) || lab_failed "cannot build the images in $IMAGES"
    echo "$stamp" >"$IMAGES/.stamp"
}

# busybox, modules and empty mount points.
common_files() {
    local top=$1 applet
    mkdir -p "$top"/{bin,dev,etc,lab,lib/modules,lib64,proc,run,srv,sys,tmp,usr/bin,usr/lib,var/lock}
    cp "$LAB/xen/bin/busybox" "$top/bin/"
    for applet in $("$LAB/xen/bin/busybox" --list); do
        [ -e "$top/bin/$applet" ] || ln -s busybox "$top/bin/$applet"
    done
    cp -R "$LAB/kernel-$KERNEL/modules" "$top/lib/modules/$KERNEL"
}

# What dom0 has besides: the toolstack with its libraries, the kernel of the guests, and more for one that is to have an NBD client.
dom0_files() {
    local top=$1 tools=usr/lib/xen-$XEN_VERSION/bin tool
    mkdir -p "$top/$tools" "$top"/{etc/xen,guest,lib/x86_64-linux-gnu,var/lib/xen,var/lib/xenstored,var/log/xen/console}
    ln -s /run "$top/var/run"
    for tool in xl xenstored xen-init-dom0 xenconsoled xenconsole xenstore-control libxl-save-helper lsevtchn xentrace; do
        cp "$LAB/xen/$tools/$tool" "$top/$tools/"
        ln -s "/$tools/$tool" "$top/usr/bin/$tool"
    done
    xenstore_clients "$top"
    echo 'autoballoon="off"' >"$top/etc/xen/xl.conf"
    libraries_of "$LAB/xen" "$top"
    cp -L "$LAB/xen/lib64/ld-linux-x86-64.so.2" "$top/lib64/"
    cp "$LAB/kernel-$KERNEL/vmlinux" "$top/guest/"
    nbd_files "$IMAGES/nbd"
    archive "$IMAGES/nbd" >"$top/guest/nbd.cpio"
    rm -rf "$IMAGES/nbd"
}

nbd_files() {
    local top=$1
    mkdir -p "$top"/{bin,lib/x86_64-linux-gnu}
    cp "$LAB/nbd/sbin/nbd-client" "$top/bin/"
    libraries_of "$LAB/nbd" "$top"
}

# libraries_of FOLDER TOP: all libraries of the unpacked packages, under the names that the loader asks for. Not those that ldd
# names: libgcc_s is opened at run time, by pthread_cancel.
libraries_of() {
    local library
    find "$1" -path '*/lib/*' \( -name 'lib*.so.[0-9]*' -o -name 'libxen*.so' \) | while read -r library; do
        cp -L "$library" "$2/lib/x86_64-linux-gnu/"
    done
}

# What a guest has besides: the XenStore clients.
domu_files() {
    local top=$1 name
    mkdir -p "$top/lib/x86_64-linux-gnu"
    xenstore_clients "$top"
    for name in libxenstore.so.4 libxentoolcore.so.1 libc.so.6; do
        find "$LAB/xen" -name $name -exec cp -L {} "$top/lib/x86_64-linux-gnu/" \;
    done
    cp -L "$LAB/xen/lib64/ld-linux-x86-64.so.2" "$top/lib64/"
}

xenstore_clients() {
    local top=$1 tool
    cp "$LAB/xen/usr/bin/xenstore" "$top/usr/bin/"
    for tool in chmod exists list ls read rm watch write; do
        ln -s xenstore "$top/usr/bin/xenstore-$tool"
    done
}

# archive FOLDER: as an initramfs, on standard output. Linux unpacks several of them, one after the other, if they are concatenated.
archive() { (cd "$1" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0); }
