"""The parts of the modules that exported folders carry, for programs with torch and transformers, without this project.

Nothing here imports them but tests: `shared.interop.custom_module` puts their texts together.
"""
