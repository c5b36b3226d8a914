"""The mathematics of the interventions, one small module a family; :mod:`steer_openrlhf.registry` lists them."""
