#!/bin/sh
# Builds the images fedct-hub and fedct-site from a wheelhouse, with buildah or podman.
#   deploy/containers/build.sh [--wheelhouse DIR] [--base IMAGE] [--target hub|site]
# --wheelhouse  what `make wheelhouse` made [wheelhouse]
# --base        a Debian 12 image, by tag or digest, also one imported from debootstrap;
#               the Containerfile names the default
# --target      only this one [both]
# Where there is no container engine, as in continuous integration: BUILDAH_ISOLATION=
# chroot and STORAGE_DRIVER=vfs in the environment.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
wheelhouse=wheelhouse
base=
targets="hub site"

refuse() {
    echo "build.sh: $1" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || refuse "$1 got no value, expected one"
    case $1 in
        --wheelhouse) wheelhouse=$2 ;;
        --base) base=$2 ;;
        --target) targets=$2 ;;
        *) refuse "got $1, expected --wheelhouse, --base or --target" ;;
    esac
    shift 2
done
case $targets in
    hub | site | "hub site") ;;
    *) refuse "--target got $targets, expected hub or site" ;;
esac
[ -f "$wheelhouse/requirements.txt" ] ||
    refuse "$wheelhouse has no requirements.txt, expected a wheelhouse; run 'make wheelhouse'"
grep -q '^# .* for Python 3\.11$' "$wheelhouse/requirements.txt" ||
    refuse "$wheelhouse is for another Python, expected 3.11, Debian 12's; make it with that"
version=$(sed -n 's/^fedct==\([^ ]*\) .*/\1/p' "$wheelhouse/requirements.txt")
[ -n "$version" ] || refuse "$wheelhouse holds no fedct, expected its wheel; make it again"
meant=$(sha256sum "$wheelhouse/requirements.txt" | cut -d ' ' -f 1)
revision=$(git -C "$here" rev-parse HEAD 2>/dev/null || echo unknown)

if command -v buildah >/dev/null 2>&1; then
    engine="buildah bud"
elif command -v podman >/dev/null 2>&1; then
    engine="podman build"
else
    refuse "found neither buildah nor podman, expected one; install buildah"
fi

for target in $targets; do
    # The docker format, because OCI's has no health check. Layers are shared.
    # shellcheck disable=SC2086  # two words
    $engine --format docker "--layers=${BUILDAH_LAYERS:-true}" \
        --file "$here/Containerfile" --ignorefile "$here/.containerignore" \
        --target "$target" --tag "localhost/fedct-$target:$version" \
        --build-arg "REQUIREMENTS_SHA256=$meant" \
        --build-arg "VERSION=$version" --build-arg "REVISION=$revision" \
        ${base:+--build-arg "BASE=$base"} "$wheelhouse"
    echo "built localhost/fedct-$target:$version"
done
