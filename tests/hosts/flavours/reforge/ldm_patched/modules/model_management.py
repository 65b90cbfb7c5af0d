from memory_manager import *  # noqa: F403 - the module is set in here, not there
