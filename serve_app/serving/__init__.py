"""What stands between HTTP and the pure stages: versions and pins, live changes, hosts of stages, the state owner.

No Ray in here: `serve_app.deployments` wraps these classes, `topology: fused` and tests call them directly.
"""
