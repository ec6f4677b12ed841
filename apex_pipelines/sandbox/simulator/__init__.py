"""A seeded population of customers that grow, stall, pay late and leave, sent through the public API."""

from __future__ import annotations

from apex_pipelines.sandbox.simulator.population import Archetype, Simulation
from apex_pipelines.sandbox.simulator.runner import SimulationReport, run_simulation

__all__ = ["Archetype", "Simulation", "SimulationReport", "run_simulation"]
