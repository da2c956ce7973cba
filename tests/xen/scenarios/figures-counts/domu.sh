# Does what dom0 says, and tells when it is done: PATH-DEPTH-REQUESTS reads, a connection, or loading blkfront.

xenstore-write data/phase ready
last=
until [ "$last" = end ]; do
    until xenstore-exists lab/go && go=$(note go) && [ "$go" != "$last" ]; do usleep 100000; done
    requests=${go##*-}
    depth=${go#*-}
    depth=${depth%-*}
    case $go in
        connect) vmsg frontend list ;;
        bus-*) vmsg frontend blk bench 0 --iodepth "$depth" --requests "$requests" ;;
        raw-*) raw-disk /dev/xvda randread 4096 "$depth" "$requests" ;;
        blkfront)
            modprobe xen-blkfront
            wait_until 30 test -b /dev/xvda
            ;;
    esac
    last=$go
    xenstore-write data/phase "$go"
done
