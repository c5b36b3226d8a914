"""STEER and its rivals as registered policy losses for OpenRLHF.

Floor 1 of the project; needs OpenRLHF and nothing of the floors above. Importing this package loads no torch and
patches nothing: see :mod:`steer_openrlhf.train_ppo_ray` for the drop-in and :mod:`steer_openrlhf.host` for the seam.
"""

__version__ = "0.1.0"
