"""Every knob of the project, as frozen dataclasses that need neither torch nor a simulator."""
