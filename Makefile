# Short names for what Meson and the programs in tools/ do. JOBS limits parallel compilers, PREFIX is where `install` puts things.
PREFIX ?= /usr/local
SECONDS ?= 60
NINJA = ninja $(if $(JOBS),-j$(JOBS)) -C
SETUP = tools/setup

all: build/build.ninja
	$(NINJA) build

build/build.ninja:
	$(SETUP) build
	meson setup build --prefix=$(PREFIX)

demo: all
	build/edgewise run -m demo --temp 0 -p "What does the tar command do?"

test:
	$(SETUP) build test
	python3 tools/test.py

# On a machine with an NVIDIA driver; EDGEWISE=FILE tests a program that was brought along, without building.
test-gpu:
	$(if $(EDGEWISE),,$(SETUP) build test)
	$(if $(EDGEWISE),EDGEWISE=$(abspath $(EDGEWISE))) python3 tools/test.py gpu

asan ubsan tsan arm64 tidy:
	$(SETUP) build test
	python3 tools/test.py $@

soak: all
	tools/soak.py

fuzz:
	$(SETUP) build fuzz
	python3 tools/fuzz.py $(SECONDS)

format:
	clang-format -i $$(git ls-files 'src/*.[ch]' 'tests/*.[ch]')

stats:
	python3 tools/stats.py 15

bench: all
	build/edgewise bench kernels
	build/edgewise bench speed -m demo

install: all
	meson install -C build --no-rebuild

clean:
	rm -rf build build-*

.PHONY: all demo soak test test-gpu asan ubsan tsan arm64 tidy fuzz format stats bench install clean
