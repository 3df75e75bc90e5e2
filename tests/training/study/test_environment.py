import json
import platform

from kizu.training.study.environment import current_environment, environment_lines


def test_environment_names_machine_and_versions_but_no_host_and_no_path():
    facts = current_environment()
    assert facts.cores >= 1
    assert facts.memory_gib > 0
    assert facts.cpu
    assert {"kizu", "torch", "numpy"} <= set(facts.versions)
    assert json.loads(json.dumps(facts.as_dict())) == facts.as_dict()
    text = "\n".join(environment_lines(facts.as_dict()))
    assert platform.python_version() in text
    assert not platform.node() or platform.node() not in text
    assert "/home" not in text
    assert "/work" not in text
