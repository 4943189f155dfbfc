# Mounts what a machine has beside its disk, makes ROOT its root, and becomes its systemd. Called by machine.py, in namespaces of its own.
#
#     sh boot.sh ROOT
#
# The old root is out of reach before systemd starts, because what systemd does first is to empty /tmp: it must be the machine's own.
# /dev is a small one, without the disks. /sys and /proc/sys can be read only, because the kernel is shared.
set -eu
[ $$ = 1 ] || { echo "boot.sh: only as the first process of namespaces of its own" >&2; exit 2; }
root=$1
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in "null 1 3" "zero 1 5" "full 1 7" "random 1 8" "urandom 1 9" "tty 5 0"; do
    set -- $device
    mknod -m 666 "$root/dev/$1" c "$2" "$3"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"
cd "$root"
pivot_root . .
umount -l .
cd /
exec env -i container=chatd-install /lib/systemd/systemd --system --unit=multi-user.target --show-status=0
