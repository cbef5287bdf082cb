#!/usr/bin/env bash
# Makes what boots a Linux guest that runs QEMU's own guest agent on its second serial port and writes into an ext4 file system without a
# pause:  make-agent-guest.sh FOLDER  →  FOLDER/vmlinuz FOLDER/initrd FOLDER/disk.raw
# needs: busybox-static e2fsprogs cpio, and apt-get to download Debian's cloud kernel and agent
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
for tool in busybox cpio mke2fs apt-cache; do
  command -v "$tool" >/dev/null || {
    echo "$tool is not installed: apt-get install busybox-static cpio e2fsprogs grub-pc-bin" >&2
    exit 1
  }
done
mkdir -p "$1"
stage=$(realpath "$1")
cd "${stage}"

[ -d kernel ] || {
  package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/{print $2}')
  apt-get download "$package" qemu-guest-agent >/dev/null 2>&1
  dpkg-deb -x "$package"_*.deb kernel
  dpkg-deb -x qemu-guest-agent_*.deb agent
}
cp kernel/boot/vmlinuz-* vmlinuz

mkdir -p tree/{bin,dev,proc,sys,mnt,tmp,var/run}
cp /bin/busybox tree/bin/
cp agent/usr/sbin/qemu-ga tree/bin/
# the agent's libraries, and the loader, each where it expects them
ldd agent/usr/sbin/qemu-ga | grep -o '/[^ ]*' | while read -r library; do
  mkdir -p "tree$(dirname "$library")"
  cp -L "$library" "tree$library"
done
cat >tree/init <<'INIT'
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs d /dev; mount -t proc p /proc; mount -t sysfs s /sys
n=0
while [ ! -b /dev/nvme0n1 ] && [ $n -lt 100 ]; do sleep 0.1; n=$((n + 1)); done
mount -t ext4 /dev/nvme0n1 /mnt && echo HYPERSDK-GUEST mounted
stty -F /dev/ttyS1 raw -echo
case "$(cat /proc/cmdline)" in *agent=no*) ;; *) qemu-ga -m isa-serial -p /dev/ttyS1 -t /tmp -d ;; esac
# names, sizes and contents change all the time: whatever is cut off in the middle of it is not whole
i=0
while true; do
  i=$((i + 1))
  head -c $((i % 7 * 3000 + 100)) /dev/urandom >/mnt/new
  sha256sum </mnt/new >/mnt/new.sum
  mv /mnt/new "/mnt/file-$((i % 60))"
  mv /mnt/new.sum "/mnt/file-$((i % 60)).sum"
  [ $((i % 25)) -eq 0 ] && echo "HYPERSDK-GUEST wrote $i"
done
INIT
chmod +x tree/init
(cd tree && find . | cpio -o -H newc --quiet | gzip -1) >initrd
rm -f disk.raw
truncate -s 128M disk.raw
mke2fs -q -F -t ext4 disk.raw
