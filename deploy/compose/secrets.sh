#!/bin/sh
# Draws the secrets of compose.yaml into ./secrets, once: a password for the stores, and their addresses with it.
#
#   sh deploy/compose/secrets.sh 'KEY OF THE MODEL'
set -eu
cd "$(dirname "$0")"
[ $# = 1 ] || { echo "usage: secrets.sh KEY" >&2; exit 2; }
[ ! -e secrets ] || { echo "secrets: there already" >&2; exit 1; }
# Containers read the files under a user of their own; nobody else gets into the directory.
umask 022
mkdir -m 700 secrets
password=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
printf %s "$password" > secrets/store-password
printf %s "postgresql://aerodrome:$password@postgresql:5432/aerodrome" > secrets/state-url
printf %s "redis://:$password@valkey:6379/0" > secrets/coordination-url
printf %s "$1" > secrets/provider-key
