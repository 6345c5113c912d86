from asymbench.testing import MethodContract


class TestAngle(MethodContract):
    method = "angle"


class TestAngleSquared(MethodContract):
    method = "angle"
    params = {"power": 2.0, "teacher": "csq"}
