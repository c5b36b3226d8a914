#!/usr/bin/env bash
# Services that some tests start for themselves, from Debian's packages: installs what is missing where that is possible
# (root, apt-get), says one line each, and never fails. Tests that need what is not there are skipped and say so.
set -u

services=( # command to look for, packages, what for
  "slurmctld|slurm-wlm munge|the Slurm executor"
  "munged|munge|the Slurm executor"
  "pg_ctl|postgresql|studies in a database"
  "chromium|chromium|pictures of the report"
)
updated=0

there() { # COMMAND: on the path, or where Debian puts daemons
  PATH=$PATH:/usr/sbin command -v "$1" >/dev/null || compgen -G "/usr/lib/postgresql/*/bin/$1" >/dev/null
}

install() { # PACKAGE...: quietly; no daemon is started
  export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
  if [ "$updated" = 0 ]; then
    timeout 120 apt-get update -qq >/dev/null 2>&1
    updated=1
  fi
  timeout 240 apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1
}

for service in "${services[@]}"; do
  IFS='|' read -r command packages purpose <<<"$service"
  if there "$command"; then
    echo "[services] $command: there ($purpose)"
  elif [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "[services] $command: missing ($purpose); as root: apt-get install $packages"
  elif read -ra names <<<"$packages" && install "${names[@]}" && there "$command"; then
    echo "[services] $command: installed ($purpose)"
  else
    echo "[services] $command: could not be installed ($purpose); its tests are skipped"
  fi
done
exit 0
