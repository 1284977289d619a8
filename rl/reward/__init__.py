"""Rewards: the client of a judge, VIEScore and GroundScore, and replies that are kept."""
