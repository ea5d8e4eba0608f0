"""What deploy/ holds is what its readers take: KubeRay's fields, systemd's, a shell's, and the fleet's own configuration.

`raycluster.schema.json.gz` is the schema of ray.io/v1 RayCluster as KubeRay ships it (ray-operator/config/crd/bases, Apache-2.0, of
19 August 2026) without descriptions, with the pod's template once.
"""

from __future__ import annotations

import copy
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from streamer.cluster.config import load_fleet

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def strict(schema: Any) -> Any:
    """A schema that refuses fields which it does not know, as `kubectl --validate=strict` does."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        out.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    return out


def problems(manifest: Any) -> list[str]:
    schema = json.loads(gzip.decompress((Path(__file__).parent / "raycluster.schema.json.gz").read_bytes()))
    found = jsonschema.Draft7Validator(strict(schema)).iter_errors(manifest)
    return [f"{'.'.join(map(str, each.path))}: {each.message}" for each in found]


def test_the_manifest_has_the_fields_of_kuberays_crd() -> None:
    manifest = yaml.safe_load((DEPLOY / "kuberay.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayCluster")
    assert problems(manifest) == []
    for path, value in (
        (("spec", "workerGroupSpecs", 0, "replica"), 2),
        (("spec", "headGroupSpec", "template", "spec", "containers", 0, "volumeMounts", 0, "mountpath"), "/x"),
        (("spec", "workerGroupSpecs", 0, "minReplicas"), "one"),
    ):
        wrong = copy.deepcopy(manifest)
        place = wrong
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        assert problems(wrong), path


def test_every_volume_of_the_manifest_is_there_and_the_head_keeps_no_engine() -> None:
    spec = yaml.safe_load((DEPLOY / "kuberay.yaml").read_text())["spec"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        there = {each["name"] for each in pod["volumes"]}
        assert {mount["name"] for each in pod["containers"] for mount in each["volumeMounts"]} <= there


def test_compose_starts_what_the_dockerfile_makes_with_a_fleet_that_is_one() -> None:
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["fleet"]
    dockerfile = DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]
    text = dockerfile.read_text()
    assert "deploy/install.sh" in text and "/opt/streamer/bin/streamer" in text
    mounted = next(each for each in service["volumes"] if each.endswith("/etc/streamer/fleet.yaml:ro"))
    fleet = load_fleet(DEPLOY / mounted.partition(":")[0])
    assert json.dumps(mounted.split(":")[1]) in text and list(fleet.names) == ["cpu-0", "cpu-1"]
    assert fleet.secret_file == "/etc/streamer/fleet.secret"
    port = service["ports"][0].split(":")
    assert port[0] == "127.0.0.1" and int(port[-1]) == fleet.server.port


def test_the_script_is_one_that_a_shell_reads_and_asks_for_root() -> None:
    subprocess.run(["sh", "-n", str(DEPLOY / "install.sh")], check=True)
    if os.getuid() == 0 and shutil.which("setpriv"):
        found = subprocess.run(
            ["setpriv", "--reuid=65534", "--clear-groups", "sh", str(DEPLOY / "install.sh")],
            capture_output=True,
            text=True,
        )
        assert (found.returncode != 0 and "root" in found.stderr) or "Permission denied" in found.stderr


@pytest.mark.parametrize("unit", [DEPLOY / "streamer-fleet.service", ROOT / "configs/streamer.service"])
def test_the_units_are_ones_that_systemd_takes(tmp_path: Path, unit: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    text = unit.read_text()
    assert "/opt/streamer/bin/streamer" in text
    (tmp_path / unit.name).write_text(text.replace("/opt/streamer/bin/streamer", sys.executable))
    found = subprocess.run(["systemd-analyze", "verify", str(tmp_path / unit.name)], capture_output=True, text=True)
    assert found.returncode == 0 and found.stderr == "", found.stderr


def test_engines_outlast_a_head_that_systemd_starts_again() -> None:
    text = (DEPLOY / "streamer-fleet.service").read_text()
    assert "KillMode=process" in text and "Restart=on-failure" in text
