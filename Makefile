# make            build everything (release)
# make demo       the whole story on this machine: five nodes, LAMMPS, a node dies
# make test       everything that must pass
# make install    programs under PREFIX/bin (default /usr/local)
# make soak       random kills for SECONDS (default 3600), seed in SEED
# make bench      this machine's figures

PREFIX ?= /usr/local
SECONDS ?= 3600
SEED ?=
CARGO ?= cargo
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
# One set of features for all, so that nothing is built twice.
FEATURES := --features scrfs-coordinator/mpi,scrfs-coordinator/objects
PROGRAMS := scrfs scrfs-coordinator scrfs-coordinator-mpi

.PHONY: all build demo test lint install uninstall soak bench clean deps deps-build

all: build

deps:
	@.ci/deps all

deps-build:
	@.ci/deps build

build: deps-build
	$(CARGO) build --release --workspace --bins $(FEATURES)

demo: deps build
	SCRFS_BIN_DIR=$(TARGET)/release $(TARGET)/release/scrfs-demo

bench: build
	$(TARGET)/release/scrfs bench

lint: deps
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets $(FEATURES) -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --quiet

# The programs first: tests of whole clusters start them.
test: deps lint
	$(CARGO) build --workspace --bins $(FEATURES)
	$(CARGO) test --workspace $(FEATURES) --no-fail-fast

soak: deps
	$(CARGO) build --workspace --bins $(FEATURES)
	SCRFS_SOAK_SECONDS=$(SECONDS) SCRFS_SEED=$(SEED) $(CARGO) test --workspace $(FEATURES) --test kills -- --nocapture

install: build
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 755 $(addprefix $(TARGET)/release/,$(PROGRAMS)) $(DESTDIR)$(PREFIX)/bin/

uninstall:
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/bin/,$(PROGRAMS))

clean:
	$(CARGO) clean
