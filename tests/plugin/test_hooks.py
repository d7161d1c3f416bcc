"""The hooks that a conftest may implement."""

from __future__ import annotations

import inspect
from typing import Any

from gate import requires

import pytest_sandbox.hookspecs
from sandbox.images import registered_transports

pytestmark = requires("userns", "overlay")


def test_a_source_of_images(run: Any) -> None:
    result = run(
        """
@pytest.mark.sandbox(image="mine:anything", command="sleep inf")
def test_it(sandbox):
    assert sandbox.exec("id -u").stdout == "0\\n"

@pytest.mark.sandbox(image="yours:anything", command="sleep inf")
def test_again(sandbox): pass
""",
        conftest="""
import sandbox.images

class Mine:
    def resolve(self, reference, store):
        assert reference.path == "anything"
        return sandbox.images.resolve("host", store=store)

def pytest_sandbox_image_sources(config):
    print("asked for sources")
    return {"mine": Mine(), "yours": Mine()}
""",
    )
    result.assert_outcomes(passed=2)
    assert result.stdout.str().count("asked for sources") <= 1
    assert registered_transports() == (), "they are this run's"


def test_a_source_that_takes_a_name_of_ours(run: Any) -> None:
    result = run(
        "@pytest.mark.sandbox(command='sleep inf')\ndef test_it(sandbox): pass",
        conftest="def pytest_sandbox_image_sources(config): return {'host': object()}",
    )
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E *register image source `host`: the name is taken"])


CONFIGURE = """
import attrs

@pytest.hookimpl(trylast=True)
def pytest_sandbox_configure_pod(item, pod):
    if item.name == "test_changed":
        return attrs.evolve(pod, hostname="changed", labels={"test": item.name})
"""


def test_a_pod_is_changed_before_it_starts(run: Any) -> None:
    result = run(
        """
pytestmark = pytest.mark.sandbox(command="sleep inf", hostname="original")

def test_changed(sandbox):
    assert sandbox.exec("hostname").stdout == "changed\\n"
    assert sandbox.model.labels == {"test": "test_changed"}

def test_left_alone(sandbox):
    assert sandbox.exec("hostname").stdout == "original\\n"

def test_of_a_factory(sandbox_factory, request):
    request.node.name = "test_changed"
    assert sandbox_factory(command="sleep inf").exec("hostname").stdout == "changed\\n"
""",
        conftest=CONFIGURE,
    )
    result.assert_outcomes(passed=3)


def test_the_first_answer_counts_and_a_wrapper_can_add_to_it(run: Any) -> None:
    result = run(
        """
@pytest.mark.sandbox(command="sleep inf")
def test_changed(sandbox):
    assert sandbox.exec("hostname").stdout == "first\\n"
    assert sandbox.model.labels == {"more": "1"}
""",
        conftest=CONFIGURE
        + """
class First:
    @pytest.hookimpl(tryfirst=True)
    def pytest_sandbox_configure_pod(self, item, pod):
        return attrs.evolve(pod, hostname="first")

class Wrapper:
    @pytest.hookimpl(wrapper=True)
    def pytest_sandbox_configure_pod(self, item, pod):
        answer = yield
        return attrs.evolve(answer or pod, labels={"more": "1"})

def pytest_configure(config):
    config.pluginmanager.register(First())
    config.pluginmanager.register(Wrapper())
""",
    )
    result.assert_outcomes(passed=1)


def test_a_pod_that_is_ready_is_prepared(run: Any) -> None:
    result = run(
        """
@pytest.mark.sandbox(command="sleep inf")
def test_it(sandbox):
    assert sandbox.read_text("/tmp/data") == "for test_it"

def test_session(shared):
    assert shared.read_text("/tmp/data").startswith("for ")

def test_broken(sandbox_factory):
    with pytest.raises(CalledProcessError, match="false"):
        sandbox_factory(command="sleep inf", labels={"broken": "yes"})
""",
        conftest="""
def pytest_sandbox_pod_started(item, pod):
    pod.write_text("/tmp/data", f"for {item.name}")
    if pod.model.containers[0].labels.get("broken"):
        pod.exec("false", check=True)

@pytest.fixture(scope="session")
def shared(sandbox_session_factory):
    return sandbox_session_factory(command="sleep inf")
""",
    )
    result.assert_outcomes(passed=3)


def test_every_hook_is_documented() -> None:
    hooks = {name: hook for name, hook in vars(pytest_sandbox.hookspecs).items() if name.startswith("pytest_")}
    assert len({name for name in hooks if name != "pytest"}) == 3
    for name, hook in hooks.items():
        text = inspect.getdoc(hook) or ""
        for parameter in inspect.signature(hook).parameters:
            assert f":param {parameter}:" in text, name
        assert "Use in conftest:" in text, name
        assert "Called" in text, name
