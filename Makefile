# Two commands matter: make run and make test. What they do is in .ci/.
SHELL := /bin/bash
.DEFAULT_GOAL := help
MODEL_ADDR ?= 127.0.0.1:4010

.PHONY: help run test browser chaos bench bench-full lint image build model clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## start gateway and API (GATEWAY_ADDR, API_ADDR, DATA_DIR) and print what to paste
	@.ci/up

test: ## run every test against a real engine and image
	@.ci/test

browser: ## the tests that drive a headless Chromium alone; pictures end up in .cache/artefacts
	@.ci/test -run Browser

chaos: ## faults of every kind against the real programs (SEED, KINDS, COUNT, REAL; docs/reliability.md)
	@.ci/chaos

bench: ## measure it beside its baselines, in less than 10 minutes (docs/performance.md)
	@.ci/bench

bench-full: ## measure all of it, in less than an hour
	@.ci/bench full

lint: ## formatting, vet, golangci-lint, modules
	@.ci/lint

image: ## build the sandbox image if its inputs changed (IMAGE=name:tag)
	@.ci/engine
	@.ci/image

build: ## bin/gateway, bin/api, bin/sandboxd and bin/model (GOOS, GOARCH)
	@mkdir -p bin
	CGO_ENABLED=0 go build -trimpath -o bin/ ./gateway/cmd/gateway ./api/cmd/api ./shared/cmd/model
	GOOS=linux CGO_ENABLED=0 go build -trimpath -o bin/ ./container/cmd/sandboxd

model: ## run the scripted model alone (MODEL_ADDR)
	go run ./shared/cmd/model -addr $(MODEL_ADDR)

clean: ## remove what was built here; not .agentpod, images or sandboxes
	rm -rf bin .cache
