"""Scenarios (*.ct): traffic as a readable script, with what is expected of it on the right, judged by engine, model or kernel.

steps: what a scenario is · text: reading and writing it · words, expectation: its vocabulary · build: steps to frames · judge: who judges frames ·
run: a scenario before a judge. docs/scenarios.md describes the language by example.
"""
