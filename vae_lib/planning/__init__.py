"""What each route would take, and the choice among them."""

from vae_lib.planning.outlook import Outlook, Prospect, routes_for
from vae_lib.planning.plan import Plan
from vae_lib.planning.planner import Planner
from vae_lib.planning.profile import Profile
from vae_lib.planning.profiles import PROFILES
from vae_lib.planning.route import DEFAULT_ORDER, FALLBACKS, Route
from vae_lib.planning.search import Preference, Step
from vae_lib.planning.work import Work
