#!/bin/sh
# Installs the Debian packages that tests use as outside checkers, where it may:
#   dicom3tools  dciodvfy, the conformance checker for what we write
#   dcm2niix     another reader's opinion on geometry
#   nginx        the line between hub and sites
#   systemd      systemd-analyze, the judge of units
# Without them the tests that need them skip and say why.
set -u
missing=""
command -v dciodvfy >/dev/null 2>&1 || missing="$missing dicom3tools"
command -v dcm2niix >/dev/null 2>&1 || missing="$missing dcm2niix"
command -v systemd-analyze >/dev/null 2>&1 || missing="$missing systemd"
{ command -v nginx || [ -x /usr/sbin/nginx ]; } >/dev/null 2>&1 \
    || missing="$missing nginx"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "not installed:$missing; the tests that need them will skip"
    exit 0
fi
{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing; } \
    >/dev/null 2>&1 || echo "could not install:$missing; the tests that need them will skip"
exit 0
