"""Where the time and the memory of a bundle go, stage by stage, over keep ratios and clients."""

from foveate.profile.measure import ProfilePlan, profile_bundle
from foveate.profile.report import write_reports
from foveate.profile.results import Profile
from foveate.profile.save import save_latency

__all__ = ["Profile", "ProfilePlan", "profile_bundle", "save_latency", "write_reports"]
