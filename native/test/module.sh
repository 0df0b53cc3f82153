#!/bin/sh
# The module's own sources and its Python face under the sanitizers that BUILD was made with: module.sh BUILD PYTHON TEST…
# runs the tests in a copy of the tree whose module is BUILD's.
set -eu
build=$1 python=$2
shift 2

tree=$build/tree
rm -rf "$tree"
mkdir "$tree"
cp -Rp allotrope tests tools pyproject.toml "$tree"
rm -f "$tree"/allotrope/native/_core*
"$(dirname "$python")/cmake" --install "$build" --prefix "$tree" > /dev/null
cd "$tree"

# Python itself knows of no sanitizer, so the module's comes first in the process, and beside it the libstdc++ whose
# exceptions it watches. Python's objects lie on the common heap, where it sees a byte too many. What Python never frees
# is no leak of ours: tests count references. Reports go around pytest, which a halt would take with it.
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1
export PYTHONMALLOC=malloc PYTHONPATH="$PWD" ALLOTROPE_THREADS=2 OMP_NUM_THREADS=1
export LD_PRELOAD="$(ldd allotrope/native/_core*.so | awk '/lib(asan|tsan|stdc\+\+)\./ { printf "%s ", $3 }')"
"$python" -c "import sys; from allotrope import native; sys.exit(native.why_not())" # without a core the tests would skip
exec "$python" -m pytest --capture=sys -p no:cacheprovider -m "not gpu and not slow" -k native "$@"
