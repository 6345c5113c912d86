"""Rendered cluster files: what each option moves, what cannot be smuggled in, what schemas say."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from referencing import Registry, Resource

from cluster.render import (
    PLACES,
    Option,
    RenderError,
    UnknownRenderNameError,
    _environment,
    options,
    parse,
    render,
)

SCHEMAS = Path(__file__).parent / "schemas"
HOSTILE = "/data/a b'c\"d$(touch pwned)`touch pwned`;{{ 7 * 7 }} #&|\\n${HOME}%h"

OTHER = {
    "name": "other",
    "study": "studies/other.yaml",
    "region": {"aws": "eu-west-1", "gcp": "us-central1-x"},
    "zone": {"aws": "us-west-2b", "gcp": "us-central1-b"},
    "image": {
        "aws": "ami-0123456789abcdef0",
        "gcp": "projects/p/global/images/family/f",
        "kuberay": "ghcr.example/team/asymbench@sha256:00ff",
    },
    "tracker_image": "ghcr.example/team/mlflow:1",
    "security_groups": "sg-0123abcd,sg-0123abce",
    "subnet": "subnet-0123abcd",
    "head_profile": "arn:aws:iam::123456789012:instance-profile/head",
    "worker_profile": "arn:aws:iam::123456789012:instance-profile/worker",
    "efs_id": "fs-0123abcd",
    "bucket": {"aws": "s3://b-1/f", "gcp": "gs://b-1/f", "kuberay": "gs://b-1/f"},
    "bucket_endpoint": "https://s3.example:9000",
    "filestore": "10.0.0.2:/share",
    "service_account": "ray@p.iam.gserviceaccount.com",
    "accelerator": "nvidia-tesla-t4",
    "gpu_taint": "example.com/gpu",
    "storage_class": "filestore-rwx",
    "python": "3.12" if sys.version_info[:2] != (3, 12) else "3.13",
    "ray": "2.99.0",
    "mlflow": "3.99.0",
    "package": "asymbench==0.1.0",
    "checkout": "../asymbench",
    "extra_packages": "my-methods==1.0,more[gpu]==2.0",
    "memory": "32G",
    "time": "2-00:00:00",
    "modules": "cuda/12.4,python/3.11",
    "venv": "/shared/venv",
    "home": "/shared/home",
    "store": "/shared/store",
    "temp": "/scratch",
    "interface": "ib0",
    "env_file": "/shared/secret.env",
    "tracking_uri": "https://mlflow.example/team",
    "array_key": "bits",
    "array_values": "16,32",
    "head": "h.example",
    "workers": "w1.example",
    "user": "ray",
    "folder": "/srv/other",
    "namespace": "other",
}
WITH = {
    ("gcp", "region"): {"zone": "us-central1-xa"},
    ("kuberay", "bucket_endpoint"): {"storage": "bucket"},
}
"""What else has to be given for an option to be taken."""


def other(place: str, option: Option) -> str:
    given = OTHER.get(option.name)
    if isinstance(given, dict):
        given = given[place]
    if given is not None:
        return given
    if isinstance(option.default, bool):
        return "false" if option.default else "true"
    if isinstance(option.default, int):
        return str(option.default + 1)
    if option.names:
        return next(name for name in option.names if name != option.default)
    return "64Gi" if option.allowed.startswith("a Kubernetes quantity") else "other"


EVERY = [(place, option) for place in PLACES for option in options(place)]
IDS = [f"{place}-{option.name}" for place, option in EVERY]


def texts(place: str, **given: str) -> dict[str, str]:
    return {path: file.text for path, file in render(place, given).files.items()}


# ---- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("place", "option"), EVERY, ids=IDS)
def test_every_option_moves_a_file_that_is_more_than_prose(place, option):
    if (place, option.name) == ("gcp", "region"):
        pytest.skip("a zone names its region, which the test below moves")
    more = WITH.get((place, option.name), {})
    plain = texts(place, **more)
    moved = texts(place, **more, **{option.name: other(place, option)})
    changed = {path for path in plain.keys() | moved.keys() if plain.get(path) != moved.get(path)}
    # Where one runs a study by hand, its name is in the commands alone.
    assert changed - ({"README.md"} if option.name != "study" else set())


def test_a_gcp_region_moves_with_its_zone():
    moved = yaml.safe_load(
        texts("gcp", region="europe-west4", zone="europe-west4-a")["cluster.yaml"]
    )
    assert moved["provider"]["region"] == "europe-west4"
    assert moved["provider"]["availability_zone"] == "europe-west4-a"


@pytest.mark.parametrize(("place", "option"), EVERY, ids=IDS)
def test_every_option_refuses_a_line_break_and_a_quote(place, option):
    for text in ('x"\n- injected', "\n", "a'; touch pwned; '"):
        if option.name in ("home", "venv", "study", "checkout", "store", "env_file"):
            text = text if "\n" in text else ""
            if not text or option.default == "":
                continue
        with pytest.raises(RenderError) as caught:
            parse(place, {option.name: text})
        assert caught.value.key == option.name


@pytest.mark.parametrize(("place", "option"), EVERY, ids=IDS)
def test_every_option_says_what_it_means_and_takes_its_own_default(place, option):
    assert option.doc
    assert option.allows
    default = option.default
    if isinstance(default, bool):
        text = str(default).lower()
    else:
        text = ",".join(default) if isinstance(default, tuple) else str(default)
    assert option.parse(text) == default


@pytest.mark.parametrize(
    ("place", "name", "text"),
    [
        ("aws", "workers_max", "0"),
        ("aws", "workers_max", "1001"),
        ("aws", "workers_max", "4.0"),
        ("aws", "spot", "yes"),
        ("aws", "storage", "nfs"),
        ("aws", "bucket", "gs://bucket"),
        ("aws", "bucket", "s3://key:secret@bucket/folder"),
        ("aws", "zone", "eu-west-1a"),
        ("aws", "efs_id", "fs-xyz"),
        ("gcp", "filestore", "10.0.0.300:/share"),
        ("kuberay", "namespace", "Team"),
        ("kuberay", "head_memory", "16GB"),
        ("slurm", "time", "24h"),
        ("slurm", "temp", "/a/folder/that/is/too/long/for/a/socket"),
        ("slurm", "tracking_uri", "https://me:secret@mlflow.example"),
        ("slurm", "home", "relative/home"),
        ("slurm", "home", "/shared/../etc"),
        ("slurm", "study", "--help"),
        ("slurm", "array_values", "0,0"),
        ("on-prem", "workers", ""),
        ("on-prem", "workers", "w1.example,-oProxyCommand=x"),
        ("on-prem", "workers", "head.example"),
        ("on-prem", "folder", "/srv/with space"),
        ("on-prem", "port", "80"),
    ],
)
def test_what_is_not_allowed_is_refused_by_its_key(place, name, text):
    with pytest.raises(RenderError) as caught:
        parse(place, {name: text})
    assert caught.value.key == name


def test_more_workers_at_least_than_at_most_are_refused():
    with pytest.raises(RenderError, match="at most workers_max, 2"):
        parse("aws", {"workers_min": "3", "workers_max": "2"})


@pytest.mark.parametrize(
    ("place", "given"),
    [
        ("aws", {"storage": "s3", "efs_id": "fs-0123abcd"}),
        ("aws", {"tracker": "off", "bucket": "s3://b-1/f"}),
        ("gcp", {"workers_gpus": "0", "accelerator": "nvidia-tesla-t4"}),
        ("kuberay", {"storage": "bucket", "storage_class": "x"}),
        ("slurm", {"gpus": "0", "gpu_type": "a100"}),
    ],
)
def test_a_value_that_would_be_read_nowhere_is_refused(place, given):
    with pytest.raises(RenderError, match="is read only where"):
        parse(place, given)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(UnknownRenderNameError) as caught:
        render("azure", {})
    assert caught.value.known == sorted(PLACES)
    with pytest.raises(UnknownRenderNameError) as caught:
        render("aws", {"regoin": "us-west-2"})
    assert "region" in caught.value.known


def test_stand_ins_are_named_until_they_are_replaced():
    assert render("aws", {}).to_fill == ["efs_id", "bucket"]
    assert render("aws", {"efs_id": "fs-0123abcd", "bucket": "s3://b-1/f"}).to_fill == []
    assert render("aws", {"tracker": "off"}).to_fill == ["efs_id"]
    assert render("aws", {"storage": "s3"}).to_fill == ["bucket"]


# ---- quoting ------------------------------------------------------------------------------------


def test_a_template_that_prints_a_value_without_a_filter_does_not_render():
    with pytest.raises(TypeError, match="without a quoting filter"):
        _environment().from_string("{{ name }}").render(name="x")


@pytest.mark.parametrize("text", ["a b", "a;b", "$(x)", "a\nb", "-x", "a'b", "%h", ""])
def test_a_value_that_cannot_be_quoted_must_be_one_plain_word(text):
    with pytest.raises(RenderError, match="plain word"):
        _environment().from_string("{{ value | word }}").render(value=text)


def test_compose_replaces_nothing_in_a_value():
    shown = _environment().from_string("{{ value | compose }}").render(value="a$B${C}")
    assert yaml.safe_load(shown) == "a$$B$${C}"


def test_a_hostile_path_stays_one_word_in_a_batch_script(tmp_path):
    script = texts("slurm", home=HOSTILE, venv=HOSTILE, study=HOSTILE)["asymbench.sbatch"]
    lines = [
        line
        for line in script.splitlines()
        if line.startswith(("export ASYMBENCH_HOME=", "study=", ". "))
    ]
    assert len(lines) == 3
    quoted = [shlex.split(line) for line in lines]
    assert [". " + HOSTILE + "/bin/activate", "export ASYMBENCH_HOME=" + HOSTILE] == [
        " ".join(words) for words in quoted[:2]
    ]
    probe = "\n".join(lines[1:]) + '\nprintf "%s\\n%s" "$ASYMBENCH_HOME" "$study"\n'
    done = subprocess.run(
        ["bash", "-c", probe], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{HOSTILE}\n{HOSTILE}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["aws", "gcp"])
def test_a_hostile_path_stays_one_value_in_yaml(place):
    cluster = yaml.safe_load(texts(place, checkout=HOSTILE)["cluster.yaml"])
    assert cluster["file_mounts"]["/home/ubuntu/asymbench"] == HOSTILE


def test_a_hostile_study_stays_one_word_in_a_job():
    job = yaml.safe_load(texts("kuberay", study=HOSTILE)["rayjob.yaml"])
    assert shlex.split(job["spec"]["entrypoint"])[:3] == ["asymbench", "run", HOSTILE]


# ---- Ray's launcher -----------------------------------------------------------------------------

LAUNCHED = [
    ("aws", {}),
    ("aws", {"spot": "false", "storage": "s3", "workers_gpus": "0", "zone": "us-west-2a"}),
    (
        "aws",
        {
            name: OTHER[name]
            for name in ("security_groups", "subnet", "head_profile", "worker_profile")
        },
    ),
    ("gcp", {}),
    ("gcp", {"spot": "false", "storage": "gcs", "accelerator": "nvidia-tesla-t4"}),
    ("gcp", {"workers_gpus": "0", "service_account": OTHER["service_account"]}),
    ("on-prem", {}),
]


@pytest.mark.ray
@pytest.mark.parametrize(("place", "given"), LAUNCHED)
def test_ray_takes_the_cluster_file(place, given):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load(texts(place, **given)["cluster.yaml"])
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    prepared = prepare_config(config)
    validate_config(prepared)
    head = prepared["available_node_types"][prepared["head_node_type"]]
    if place == "on-prem":
        assert prepared["provider"]["worker_ips"] == ["worker-1.example", "worker-2.example"]
        assert head["max_workers"] == 2
    else:
        assert head["resources"] == {"CPU": 0}
        worker = prepared["available_node_types"]["worker"]
        assert (worker["min_workers"], worker["max_workers"]) == (1, 4)
        assert worker["resources"].get("GPU", 0) == int(given.get("workers_gpus", "1"))


def test_spot_is_asked_for_where_wanted():
    spot = yaml.safe_load(texts("aws")["cluster.yaml"])["available_node_types"]
    assert spot["worker"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in spot["head"]["node_config"]
    gcp = yaml.safe_load(texts("gcp")["cluster.yaml"])["available_node_types"]
    assert gcp["worker"]["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
    assert "scheduling" not in gcp["head"]["node_config"]


def test_setup_commands_are_whole_shell_words():
    for place, given in LAUNCHED:
        config = yaml.safe_load(texts(place, **given)["cluster.yaml"])
        for key in ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
            for command in config.get(key, []):
                assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0
                assert shlex.split(command)


def test_the_environment_that_setup_writes_is_the_one_that_was_asked_for(tmp_path):
    config = yaml.safe_load(texts("aws", storage="s3", bucket="s3://b-1/f")["cluster.yaml"])
    (write,) = [c for c in config["setup_commands"] if c.startswith("printf")]
    probe = f'{write}\n. ~/.asymbench.sh\necho "$ASYMBENCH_HOME $ASYMBENCH_STORE $RAY_AUTH_MODE"'
    done = subprocess.run(
        ["bash", "-c", probe],
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "/home/ubuntu/runs s3://b-1/f/store token\n"


def test_iam_policies_name_the_bucket_and_end_only_the_own_machines():
    files = texts("aws", storage="s3", bucket="s3://b-1/f", worker_profile=OTHER["worker_profile"])
    head, worker = (json.loads(files[f"iam-{role}.json"]) for role in ("head", "worker"))
    by_id = {statement["Sid"]: statement for statement in head["Statement"]}
    assert by_id["EndOnlyItsOwn"]["Condition"] == {
        "StringEquals": {"aws:ResourceTag/ray-cluster-name": "asymbench"}
    }
    assert by_id["TheBucket"]["Resource"] == "arn:aws:s3:::b-1/f/*"
    assert by_id["ListTheBucket"]["Resource"] == "arn:aws:s3:::b-1"
    assert "arn:aws:iam::123456789012:role/worker" in by_id["GiveWorkersTheirRole"]["Resource"]
    assert {statement["Sid"] for statement in worker["Statement"]} == {
        "TheBucket",
        "ListTheBucket",
    }
    assert "iam-worker.json" not in texts("aws")


# ---- Kubernetes ---------------------------------------------------------------------------------


def schema(name: str) -> dict:
    return json.loads((SCHEMAS / name).read_text())


def check_manifest(manifest: dict) -> None:
    name = "kuberay.json" if manifest["apiVersion"].startswith("ray.io/") else "kubernetes.json"
    kinds = schema(name)["kinds"]
    assert manifest["kind"] in kinds
    registry = Registry().with_resources(
        (each, Resource.from_contents(schema(each)))
        for each in ("kuberay.json", "kubernetes.json")
    )
    jsonschema.Draft202012Validator(
        {"$ref": f"{name}#/kinds/{manifest['kind']}"}, registry=registry
    ).validate(manifest)


def manifests(**given: str) -> list[dict]:
    found = []
    for path, text in texts("kuberay", **given).items():
        if path.endswith(".yaml"):
            found += list(yaml.safe_load_all(text))
    return found


KUBERAY = [
    {},
    {"storage": "bucket", "bucket_endpoint": "https://s3.example"},
    {"tracker": "off", "workers_gpus": "0"},
    {"storage_class": "rwx", "gpu_taint": "example.com/gpu"},
]


@pytest.mark.parametrize("given", KUBERAY)
def test_manifests_are_what_kubernetes_and_kuberay_take(given):
    found = manifests(**given)
    for manifest in found:
        check_manifest(manifest)
    kinds = {manifest["kind"] for manifest in found}
    assert {"Namespace", "RayCluster", "RayJob", "NetworkPolicy"} <= kinds
    assert ("PersistentVolumeClaim" in kinds) == (given.get("storage") != "bucket")
    assert ("StatefulSet" in kinds) == (given.get("tracker") != "off")


def test_the_schema_check_finds_a_misspelt_key():
    (cluster,) = [m for m in manifests() if m["kind"] == "RayCluster"]
    cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePullpolicy"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="imagePullpolicy"):
        check_manifest(cluster)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_can_read_the_manifests(tmp_path):
    core = [m for m in manifests() if not m["apiVersion"].startswith("ray.io/")]
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(core))
    (tmp_path / "kustomization.yaml").write_text("resources: [all.yaml]\n")
    done = subprocess.run(
        ["kubectl", "kustomize", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(list(yaml.safe_load_all(done.stdout))) == len(core)


def pods(found: list[dict]) -> list[dict]:
    templates = []
    for manifest in found:
        spec = manifest.get("spec", {})
        ray = spec.get("rayClusterSpec", spec)
        if "headGroupSpec" in ray:
            templates.append(ray["headGroupSpec"]["template"]["spec"])
            templates += [group["template"]["spec"] for group in ray["workerGroupSpecs"]]
            if "submitterPodTemplate" in spec:
                templates.append(spec["submitterPodTemplate"]["spec"])
        elif "template" in spec:
            templates.append(spec["template"]["spec"])
    return templates


@pytest.mark.parametrize("given", KUBERAY)
def test_every_pod_is_without_rights_bounded_and_probed(given):
    found = pods(manifests(**given))
    assert len(found) == (5 if given.get("tracker") == "off" else 7)
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert {"requests", "limits"} <= container["resources"].keys()
            if container["name"] != "submitter":  # ends by itself
                assert {"readinessProbe", "livenessProbe"} <= container.keys()


def test_no_manifest_holds_a_password():
    for manifest in manifests(storage="bucket"):
        assert manifest["kind"] != "Secret"
        for pod in pods([manifest]):
            for container in pod["containers"]:
                for entry in container.get("env", []):
                    if re.search("PASSWORD|SECRET|KEY|TOKEN", entry["name"]):
                        assert "value" not in entry
                        assert "secretKeyRef" in entry["valueFrom"]


def test_workers_ask_for_their_gpus_and_nobody_computes_on_the_head():
    for manifest in manifests(workers_gpus="4"):
        spec = manifest.get("spec", {})
        ray = spec.get("rayClusterSpec", spec)
        if "headGroupSpec" in ray:
            assert ray["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
            (group,) = ray["workerGroupSpecs"]
            (worker,) = group["template"]["spec"]["containers"]
            assert worker["resources"]["limits"]["nvidia.com/gpu"] == 4


def test_only_mlflow_reaches_the_database_and_only_the_namespace_reaches_mlflow():
    policies = {
        m["metadata"]["name"]: m["spec"] for m in manifests() if m["kind"] == "NetworkPolicy"
    }
    assert policies["postgres"]["podSelector"] == {"matchLabels": {"app": "postgres"}}
    (way,) = policies["postgres"]["ingress"]
    assert way["from"] == [{"podSelector": {"matchLabels": {"app": "mlflow"}}}]
    assert policies["inside-only"]["podSelector"] == {}
    (service,) = [
        m for m in manifests() if m["kind"] == "Service" and m["metadata"]["name"] == "mlflow"
    ]
    assert service["spec"]["type"] == "ClusterIP"


# ---- the tracker --------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["aws", "gcp", "slurm", "on-prem"])
def test_the_trackers_compose_file_is_one(place):
    files = texts(place)
    compose = yaml.safe_load(files["tracker/compose.yaml"])
    jsonschema.validate(compose, schema("compose.json"))
    services = compose["services"]
    assert services["mlflow"]["ports"] == ["127.0.0.1:5000:5000"]
    assert all("ports" not in services[name] for name in services if name != "mlflow")
    assert ("minio" in services) == (place in ("slurm", "on-prem"))
    blanks = re.findall(r"^([A-Z0-9_]+)=(.*)$", files["tracker/.env.example"], re.MULTILINE)
    assert blanks
    assert all(value == "" for _, value in blanks)
    asked = set(re.findall(r"\$\{([A-Z0-9_]+):\?", files["tracker/compose.yaml"]))
    assert asked == {name for name, _ in blanks}


@pytest.mark.mlflow
def test_mlflow_knows_the_flags_and_variables_of_its_server():
    from mlflow.cli import server

    flags = {flag for param in server.params for flag in (*param.opts, *param.secondary_opts)}
    variables = {param.envvar for param in server.params if getattr(param, "envvar", None)}
    compose = yaml.safe_load(texts("on-prem")["tracker/compose.yaml"])
    command, *arguments = compose["services"]["mlflow"]["command"]
    assert command == "server"
    assert {argument.split("=")[0] for argument in arguments} <= flags
    assert {"MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION"} <= variables


# ---- shell and units ----------------------------------------------------------------------------

SCRIPTS = [
    ("slurm", "asymbench.sbatch", {}),
    ("slurm", "asymbench.sbatch", {"nodes": "1", "gpus": "0", "interface": "ib0"}),
    ("slurm", "asymbench.sbatch", {"store": "s3://b-1/f", "env_file": "/s.env", "modules": "a/1"}),
    ("slurm", "asymbench.sbatch", {"tracking_uri": "https://m.example", "gpu_type": "a100"}),
    ("slurm", "one-node.sbatch", {}),
    ("slurm", "one-node.sbatch", {"array_values": "7", "offline": "false"}),
    ("on-prem", "node.sh", {"env_file": "/srv/s.env"}),
    ("on-prem", "environment.sh", {"store": "/srv/store"}),
    ("on-prem", "cluster.sh", {}),
    ("on-prem", "cluster.sh", {"tracker": "off", "workers": "w1"}),
]


@pytest.mark.parametrize(("place", "path", "given"), SCRIPTS)
def test_bash_takes_the_scripts(place, path, given):
    script = texts(place, **given)[path]
    done = subprocess.run(
        ["bash", "-n"], input=script, text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def shellcheck() -> str | None:
    return shutil.which("shellcheck") or shutil.which(
        str(Path(sys.executable).parent / "shellcheck")
    )


@pytest.mark.skipif(shellcheck() is None, reason="shellcheck is not installed")
@pytest.mark.parametrize(("place", "path", "given"), SCRIPTS)
def test_shellcheck_finds_nothing_in_the_scripts(place, path, given):
    done = subprocess.run(
        [shellcheck(), "--shell=bash", "-"],
        input=texts(place, **given)[path],
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.ray
def test_ray_knows_every_flag_that_the_scripts_give_it():
    from ray.scripts.scripts import start

    known = {flag for param in start.params for flag in (*param.opts, *param.secondary_opts)}
    batch = texts("slurm")["asymbench.sbatch"]
    node = texts("on-prem")["node.sh"]
    commands = [
        batch[batch.index("options=(") : batch.index("told=0")],
        node[node.index("options=(") : node.index("exec ray start --address")],
    ]
    for place in ("aws", "gcp", "on-prem"):
        commands += re.findall(r"ray start (.*)", texts(place)["cluster.yaml"])
    assert len(commands) == 8
    for command in commands:
        flags = set(re.findall(r"--[a-z][a-z-]+", command))
        assert flags
        assert flags <= known


def directives(script: str) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", script, re.MULTILINE))


def test_the_batch_script_asks_slurm_for_what_was_given():
    given = {
        "nodes": "3", "cpus": "12", "gpus": "4", "gpu_type": "a100", "memory": "100G",
        "time": "1-12:00:00", "warning_seconds": "120", "partition": "gpu", "account": "me",
        "qos": "long", "constraint": "nvlink", "name": "sweep",
    }  # fmt: skip
    assert directives(texts("slurm", **given)["asymbench.sbatch"]) == {
        "job-name": "sweep", "nodes": "3", "ntasks-per-node": "1", "cpus-per-task": "12",
        "mem": "100G", "gres": "gpu:a100:4", "time": "1-12:00:00", "signal": "B:USR1@120",
        "requeue": "", "open-mode": "append", "partition": "gpu", "account": "me", "qos": "long",
        "constraint": "nvlink", "no-kill": "", "output": "sweep-%j.log",
    }  # fmt: skip
    one = directives(texts("slurm", **given, array_values="16,32,48")["one-node.sbatch"])
    assert one["array"] == "0-2%4"
    assert one["nodes"] == "1"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_units(tmp_path):
    files = texts("on-prem", user="root")
    for role in ("head", "worker"):
        unit = tmp_path / f"asymbench-ray-{role}.service"
        unit.write_text(files[unit.name])
        done = subprocess.run(
            ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
        )
        mine = [line for line in done.stderr.splitlines() if unit.name in line]
        assert mine == [], done.stderr


def test_the_cluster_script_starts_and_ends_a_process_on_every_host(tmp_path):
    folder = tmp_path / "cluster"
    folder.mkdir()
    files = texts("on-prem", folder=str(folder), head="h.example", workers="w1.example,w2.example")
    (folder / "cluster.sh").write_text(files["cluster.sh"])
    (folder / "node.sh").write_text('#!/bin/bash\necho "role $1"\nexec sleep 300\n')
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/bash\necho "$1" >>"$0.hosts"\nshift\nexec bash -c "$*"\n')
    for path in (folder / "node.sh", ssh):
        path.chmod(0o755)

    def cluster(action: str) -> str:
        return subprocess.run(
            ["bash", str(folder / "cluster.sh"), action],
            env={"PATH": "/usr/bin:/bin", "CLUSTER_SSH": str(ssh)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    cluster("token")
    token = folder / "token"
    assert re.fullmatch("[0-9a-f]{64}", token.read_text())
    assert token.stat().st_mode & 0o077 == 0
    kept = token.read_text()
    cluster("token")
    assert token.read_text() == kept

    up = cluster("up")
    try:
        numbers = {p.stem: int(p.read_text()) for p in (folder / "run").glob("*.pid")}
        assert numbers.keys() == {"h.example", "w1.example", "w2.example"}
        assert "h.example: started as head" in up
        assert "w2.example: started as worker" in up
        assert all(Path(f"/proc/{number}").exists() for number in numbers.values())
        assert "h.example: runs already" in cluster("up")
    finally:
        down = cluster("down")
    assert down.count("stopped") == 3
    assert not any(Path(f"/proc/{number}").exists() for number in numbers.values())
    users = set((tmp_path / "ssh.hosts").read_text().split())
    assert users == {f"asymbench@{host}" for host in ("h.example", "w1.example", "w2.example")}
