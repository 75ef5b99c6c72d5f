# Sourced by the scripts that type-check, on Linux, code that only other systems compile. Such a check proves types only:
# nothing is linked, and nothing runs. Whoever cannot check says "not checked" and fails.
#
# rustup may not be able to fetch other targets, so the compiler and the sources of its standard library come from Debian 12's
# packages, extracted below target/ and not installed. apt checks each against Debian's signature; which version it is, is up
# to Debian. Needs cargo, apt and dpkg, the packages' mirror and crates.io the first time, and no rights of root.
#
# shellcheck shell=bash
set -euo pipefail
shopt -s inherit_errexit nullglob
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=$(realpath -m "${CARGO_TARGET_DIR:-target}/platforms")
tools=$work/tools
export CARGO_TERM_COLOR=never CARGO_INCREMENTAL=0
unset RUSTC RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER RUSTC_BOOTSTRAP RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET

not_checked() {
    echo "not checked: $*" >&2
    exit 1
}

# Runs a command, and shows what it said only if it fails.
quietly() {
    local log=$work/log
    "$@" >"$log" 2>&1 || { tail -n 30 "$log" >&2; return 1; }
}

# Debian's compiler, clippy, and the sources of std.
fetch_tools() {
    local start=$SECONDS packages=$work/packages root=$work/extracted package libraries program
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || not_checked "the compiler comes from Debian's packages, and there is no apt here"
    rm -rf "$packages" "$root"
    mkdir -p "$packages"/{archives,lists}/partial "$root" "$work/bin"
    # Lists and archives of its own: those of the system may be old, and need root.
    local apt=(apt-get -o Debug::NoLocking=1 -o APT::Sandbox::User="$(id -un)" -o Dir::State::Lists="$packages/lists" -o Dir::Cache="$packages" -o Dir::Cache::Archives="$packages/archives")
    quietly "${apt[@]}" update || echo "apt could not update all its lists; going on with what it has" >&2
    quietly "${apt[@]}" --yes --download-only --no-install-recommends install rustc-web rust-web-src rust-web-clippy \
        || not_checked "apt cannot download rustc-web, rust-web-src and rust-web-clippy (Debian 12 with its security updates has them)"
    for package in "$packages"/archives/*.deb; do
        case ${package##*/} in
            rust-web-src_*) dpkg-deb --fsys-tarfile "$package" | tar -x -C "$root" --wildcards './usr/lib/rustlib/src/*' './usr/src/rustc-*/library' ;;
            *) dpkg-deb -x "$package" "$root" ;;
        esac
    done
    rm -rf "$packages"
    libraries=("$root"/usr/lib/*/librustc_driver-*.so)
    [ ${#libraries[@]} -eq 1 ] || not_checked "Debian's packages hold ${#libraries[@]} librustc_driver, expected one; the layout has changed"
    libraries=${libraries[0]#"$root"}
    for program in rustc cargo-clippy; do
        printf '#!/bin/sh\nexport LD_LIBRARY_PATH=%q\nexec %q "$@"\n' "$tools${libraries%/*}" "$tools/usr/bin/$program" >"$work/bin/$program"
        chmod +x "$work/bin/$program"
    done
    rm -rf "$tools"
    mv "$root" "$tools"
    echo "tools: $((SECONDS - start)) s"
}

# std of each target, as far as a check reads it: metadata without code, which is in no package.
build_std() {
    local start=$SECONDS target missing=() arguments=()
    for target in "$@"; do
        [ -e "$tools/usr/lib/rustlib/$target/complete" ] || missing+=("$target")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    for target in "${missing[@]}"; do
        arguments+=(--target "$target")
    done
    mkdir -p "$work/empty/src"
    printf '[package]\nname = "empty"\nedition = "2024"\n[workspace]\n' >"$work/empty/Cargo.toml"
    : >"$work/empty/src/lib.rs"
    RUSTC_BOOTSTRAP=1 RUSTFLAGS='-Zno-codegen -Cdebuginfo=0' CARGO_TARGET_DIR=$work/std quietly \
        cargo check --manifest-path "$work/empty/Cargo.toml" -Zbuild-std=std,test "${arguments[@]}" \
        || not_checked "the standard library for ${missing[*]} does not build"
    for target in "${missing[@]}"; do
        mkdir -p "$tools/usr/lib/rustlib/$target/lib"
        rm -f "$work/std/$target"/debug/deps/libempty-*
        mv "$work/std/$target"/debug/deps/lib*.rmeta "$tools/usr/lib/rustlib/$target/lib/"
        touch "$tools/usr/lib/rustlib/$target/complete"
    done
    rm -rf "$work/std" "$work/empty"
    echo "std for ${missing[*]}: $((SECONDS - start)) s"
}

# Makes the compiler ready for the targets.
prepare_compiler() {
    local version wanted
    mkdir -p "$work"
    exec 9>"$work/lock"
    flock 9
    [ -d "$tools" ] || fetch_tools
    export RUSTC=$work/bin/rustc
    version=$("$RUSTC" --version | awk '{ print $2 }') || not_checked "Debian's compiler does not run; without $work it is fetched anew"
    wanted=$(cargo metadata --locked --no-deps --format-version 1 | python3 -c '
import json, sys
print(next(p["rust_version"] for p in json.load(sys.stdin)["packages"] if p["name"] == "llm-local"))')
    [ "$(printf '%s\n' "$wanted" "$version" | sort -V | head -n 1)" = "$wanted" ] || not_checked "Debian's compiler is $version, expected $wanted or newer"
    echo "with rustc $version of Debian's"
    build_std "$@"
}

# check NAME TARGET [ARGUMENTS OF CARGO]. Of clippy's lints only those fail that do not depend on the version, since Debian's
# may be newer than the toolchain that the code is written with. Nothing runs but what is needed to compile the rest, so nothing
# is worth the time that optimizing takes.
check() {
    local start=$SECONDS name=$1 target=$2
    shift 2
    CARGO_TARGET_DIR=$work/target "$work/bin/cargo-clippy" clippy --quiet --locked \
        --target "$target" "$@" -- \
        -D unused -D missing_docs -D clippy::correctness -D clippy::suspicious -D clippy::undocumented_unsafe_blocks \
        || { echo "$name does not pass for $target" >&2; return 1; }
    echo "checked $name for $target: $((SECONDS - start)) s"
}
