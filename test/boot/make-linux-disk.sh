#!/usr/bin/env bash
# Makes a raw disk that boots Debian's cloud kernel with a tiny init, which hashes every file of its root file system again and prints the
# result on the serial port:  make-linux-disk.sh OUT.raw FOLDER
# needs: grub-pc-bin busybox-static e2fsprogs cpio, and apt-get to download the kernel
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
for tool in busybox cpio mke2fs grub-mkimage apt-cache; do
  command -v "$tool" >/dev/null || {
    echo "$tool is not installed: apt-get install busybox-static cpio e2fsprogs grub-pc-bin" >&2
    exit 1
  }
done
out=$1
mkdir -p "$2"
stage=$(realpath "$2")

if ! ls "${stage}"/kernel/boot/vmlinuz-* >/dev/null 2>&1; then
  (
    cd "${stage}"
    package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/{print $2}')
    apt-get download "$package" >/dev/null 2>&1
    dpkg-deb -x "$package"*.deb kernel
  )
fi

rm -rf "${stage}/initrd" "${stage}/tree"
mkdir -p "${stage}"/initrd/{bin,dev,proc,mnt} "${stage}/tree/boot/grub"
cp /bin/busybox "${stage}/initrd/bin/"
cat >"${stage}/initrd/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs d /dev
/bin/busybox mount -t proc p /proc
n=0
while [ ! -b /dev/nvme0n1p1 ] && [ $n -lt 50 ]; do /bin/busybox sleep 0.1; n=$((n + 1)); done
/bin/busybox mount -t ext4 -o ro /dev/nvme0n1p1 /mnt
cd /mnt && /bin/busybox sha256sum -c SUMS >/dev/null && echo HYPERSDK-BOOT linux, every file is whole || echo HYPERSDK-BOOT damaged
/bin/busybox poweroff -f
INIT
chmod +x "${stage}/initrd/init"
(cd "${stage}/initrd" && find . | cpio -o -H newc --quiet | gzip -1) >"${stage}/tree/boot/initrd"
cp "${stage}"/kernel/boot/vmlinuz-* "${stage}/tree/boot/vmlinuz"
[ -f "${stage}/payload" ] || { head -c 24M /dev/urandom; cat "${stage}"/kernel/lib/modules/*/kernel/fs/*/*.ko | head -c 24M; } >"${stage}/payload"
cp "${stage}/payload" "${stage}/tree/payload"
(cd "${stage}/tree" && sha256sum payload boot/vmlinuz boot/initrd >SUMS)

printf 'set root=(hd0,msdos1)\nlinux /boot/vmlinuz console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable\ninitrd /boot/initrd\nboot\n' >"${stage}/early.cfg"
grub-mkimage -O i386-pc -p /boot/grub -c "${stage}/early.cfg" -o "${stage}/core.img" biosdisk part_msdos ext2 linux normal minicmd
rm -f "$out"
truncate -s 256M "$out"
mke2fs -q -F -t ext4 -O ^metadata_csum_seed -d "${stage}/tree" -E offset=1048576 "$out" 250M
dd if=/usr/lib/grub/i386-pc/boot.img of="$out" bs=440 count=1 conv=notrunc status=none
printf '\x55\xaa' | dd of="$out" bs=1 seek=510 conv=notrunc status=none
# partition 1: active, type 83, sectors 2048 to 514047
printf '\x80\x20\x21\x00\x83\xfe\xff\xff\x00\x08\x00\x00\x00\xd0\x07\x00' | dd of="$out" bs=1 seek=446 conv=notrunc status=none
dd if="${stage}/core.img" of="$out" bs=512 seek=1 conv=notrunc status=none
