#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The C core under the tools that look for what tests cannot see.
#
#   tests/sanitize.sh [asan] [valgrind] [threads] [fuzz [SECONDS]] [python [SECONDS]]
#
# Without a word: all, bounded.
#
# asan: address and undefined-behaviour sanitizers on core*.c, and the fuzzer's corpus replayed.
# valgrind: memcheck on core*.c, every 13th length. threads: the thread sanitizer on tsan.c.
# fuzz: libFuzzer on fuzz_*.c from tests/data/fuzz/core.bin; needs clang. python: atheris on the
# three targets of fuzz_python.py, so many seconds each. A tool that is not installed is named and
# passed over.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
core=(csrc/*.c csrc/cpu/*.c)
flags=(-std=c11 -g -ffp-contract=off -Wno-unknown-pragmas)
checks=(-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all)
libraries=(-lm -ldl -lpthread)
has() { command -v "$1" > "$out/which" || { echo "$1 is not installed: left out"; return 1; }; }

asan() {
    cc "${flags[@]}" -O1 "${checks[@]}" tests/core*.c "${core[@]}" -o "$out/asan" "${libraries[@]}"
    "$out/asan" "${1:-1}"
    cc "${flags[@]}" -O1 "${checks[@]}" -DREPLAY tests/fuzz_*.c "${core[@]}" csrc/render/*.c \
        -o "$out/replay" "${libraries[@]}"
    "$out/replay" tests/data/fuzz/core.bin
}

valgrind_() {
    has valgrind || return 0
    cc "${flags[@]}" -O1 tests/core*.c "${core[@]}" -o "$out/valgrind" "${libraries[@]}"
    valgrind --quiet --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite \
        --show-leak-kinds=definite "$out/valgrind" 13
}

threads() {
    cc "${flags[@]}" -O1 -fPIC -shared -fsanitize=thread tests/tsan_team.c -o "$out/libgomp.so.1"
    for source in tests/tsan.c "${core[@]}"; do
        cc -std=c11 -g -ffp-contract=off -O1 -fopenmp -fsanitize=thread -c "$source" \
            -o "$out/$(basename "$source").tsan.o"
    done
    cc -fsanitize=thread "$out"/*.tsan.o -o "$out/threads" "${libraries[@]}"
    LD_LIBRARY_PATH=$out TSAN_OPTIONS=halt_on_error=1 "$out/threads"
}

fuzz() {
    local clang
    clang=$(compgen -c clang | grep -xE 'clang(-[0-9]+)?' | sort | head -n 1)
    has "${clang:-clang}" || return 0
    "$clang" "${flags[@]}" -O1 -fsanitize=fuzzer "${checks[@]}" tests/fuzz_*.c "${core[@]}" \
        csrc/render/*.c -o "$out/fuzz" "${libraries[@]}"
    python3 tests/corpus.py unpack tests/data/fuzz/core.bin "$out/corpus"
    "$out/fuzz" -max_len=2048 -max_total_time="${1:-60}" -print_final_stats=1 \
        -artifact_prefix=fuzz- "$out/corpus" 2>&1 | tail -n 8
}

python_() {
    python3 -c 'import atheris' 2> "$out/which" || { echo "atheris is not installed: left out"; return 0; }
    for target in api binding checkpoint; do
        if [ $target = checkpoint ]; then
            mkdir -p "$out/$target" && cp tests/data/fuzz/seed*.safetensors "$out/$target"
        else
            python3 tests/corpus.py unpack "tests/data/fuzz/$target.bin" "$out/$target"
        fi
        PYTHONPATH=$PWD:$PWD/tests python3 tests/fuzz_python.py $target -max_len=8192 \
            -max_total_time="${1:-60}" -print_final_stats=1 -artifact_prefix=fuzz-$target- \
            "$out/$target" > "$out/$target.log" 2>&1 || { tail -n 40 "$out/$target.log"; return 1; }
        echo "$target: $(grep '^Done' "$out/$target.log")"
    done
}

[ $# -gt 0 ] || set -- asan valgrind threads fuzz 30 python 15
while [ $# -gt 0 ]; do
    case $1 in
        asan) asan ;;
        valgrind) valgrind_ ;;
        threads) threads ;;
        fuzz | python)
            what=$1 seconds=60
            if [[ ${2:-} =~ ^[0-9]+$ ]]; then seconds=$2; shift; fi
            if [ "$what" = fuzz ]; then fuzz "$seconds"; else python_ "$seconds"; fi
            ;;
        *) echo "$1 is unknown; asan, valgrind, threads, fuzz or python is wanted" >&2; exit 2 ;;
    esac
    shift
done
