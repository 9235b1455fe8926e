# Flotilla's front door. `make` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(PATH)
# Read once, before setup: `?=` would ask again in every recipe.
FLOTILLA_STARTED := $(or $(FLOTILLA_STARTED),$(shell date +%s.%N))
export FLOTILLA_STARTED

.PHONY: help setup demo test lint security unit lab-tests drills molecule clean requirements

help: ## List the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "%-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install what Flotilla needs: system packages, then Python packages in .venv
	@scripts/bootstrap

demo: setup ## From a bare machine to a serving fleet, a rolling deploy and a switchover under traffic
	@fab demo.run --yes

test: setup lint ## Lint, unit, template and lab tests
	@pytest tests/unit tests/templates -n 4 --dist worksteal
	@pytest tests/api
	@pytest tests/lab -m "not drill"

lint: setup ## Every linter, each named as it runs
	@scripts/lint

security: setup ## Secrets, flaws and rights by other people's tools; then, on real hosts, who reaches whom and who did what
	@pytest tests/security
	@pytest tests/lab -k test_security

unit: setup ## Unit and template tests alone (seconds, no hosts)
	@pytest tests/unit tests/templates -n 4 --dist worksteal
	@pytest tests/api

lab-tests: setup ## Tests on real hosts alone
	@pytest tests/lab

# CI leaves out what repeats another drill at another moment.
drills: setup ## Every run-book, every bake that must fail, every fault of a deploy or a database, on real hosts
	@pytest tests/haproxyd tests/redisd tests/netns tests/sshd
	@pytest tests/mysqld $(if $(CI_DRILLS),-m "not thorough")
	@pytest tests/lab -m "drill$(if $(CI_DRILLS), and not thorough)"

molecule: setup ## Role scenarios on instances launched through the EC2 API
	@pytest tests/molecule

clean: ## Take the lab down and remove everything it made; images stay cached
	@if [ -x $(BIN)/fab ]; then fab lab.down; fi
	@rm -rf var/lab

requirements: setup ## Pin the dependencies again, with hashes and without index addresses
	@for f in bootstrap runtime lab dev sslyze; do uv pip compile -q --upgrade --generate-hashes --universal --python-version 3.11 \
	  --no-emit-index-url --no-emit-find-links --no-header --no-annotate requirements/$$f.in -o requirements/$$f.txt; done
