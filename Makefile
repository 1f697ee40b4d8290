# make            build everything (release)
# make demo       the whole story on this machine: five nodes, LAMMPS, a node dies
# make test       everything that must pass
# make install    programs, manual pages and completions under PREFIX (default /usr/local)
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
COMPLETIONS := bash-completion/completions zsh/site-functions fish/vendor_completions.d

.PHONY: all build demo test lint install uninstall soak bench clean deps deps-build deps-demo

all: build

deps:
	@.ci/deps all

deps-build:
	@.ci/deps build

deps-demo:
	@.ci/deps demo

build: deps-build
	$(CARGO) build --release --workspace --bins $(FEATURES)

demo: deps-demo build
	SCRFS_BIN_DIR=$(TARGET)/release $(TARGET)/release/scrfs-demo

bench: build
	$(TARGET)/release/scrfs bench

lint: deps
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets $(FEATURES) -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --quiet

# What hangs ends after so many seconds for each program of tests, and the others go on.
TEST_SECONDS ?= 1500
BOUNDED := --config 'target."cfg(unix)".runner = "timeout --kill-after=30 $(TEST_SECONDS)"'

# The programs first: tests of whole clusters start them.
test: deps lint
	$(CARGO) build --workspace --bins $(FEATURES)
	$(CARGO) test --workspace $(FEATURES) --no-fail-fast $(BOUNDED)

soak: deps
	$(CARGO) build --workspace --bins $(FEATURES)
	SCRFS_SOAK_SECONDS=$(SECONDS) SCRFS_SEED=$(SEED) $(CARGO) test --workspace $(FEATURES) --test kills -- --nocapture

install: build
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 755 $(addprefix $(TARGET)/release/,$(PROGRAMS)) $(DESTDIR)$(PREFIX)/bin/
	$(TARGET)/release/scrfs man $(DESTDIR)$(PREFIX)/share/man
	install -d $(addprefix $(DESTDIR)$(PREFIX)/share/,$(COMPLETIONS))
	$(TARGET)/release/scrfs completions bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/scrfs
	$(TARGET)/release/scrfs completions zsh > $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_scrfs
	$(TARGET)/release/scrfs completions fish > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/scrfs.fish

uninstall:
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/bin/,$(PROGRAMS))
	rm -f $(DESTDIR)$(PREFIX)/share/man/man1/scrfs.1 $(DESTDIR)$(PREFIX)/share/man/man1/scrfs-*.1
	rm -f $(DESTDIR)$(PREFIX)/share/man/man5/scrfs.toml.5
	rm -f $(DESTDIR)$(PREFIX)/share/bash-completion/completions/scrfs
	rm -f $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_scrfs
	rm -f $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/scrfs.fish

clean:
	$(CARGO) clean
