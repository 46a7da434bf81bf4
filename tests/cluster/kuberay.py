"""The fields of KubeRay's ray.io/v1 resources, as far as cluster/ may use them.

Written down from the operator's published API types (KubeRay 1.5.1 and later, which brought ``authOptions``); names,
types, what is required and allowed values are theirs. Unknown fields are errors here, as they are for a strict
``kubectl apply``. Parts that are Kubernetes' own (pod templates, services) stay plain: its own schemas judge them.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Plain = dict[str, Any]
Strings = dict[str, str]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class AuthOptions(Strict):
    mode: Literal["disabled", "token"] = "token"
    secretName: str | None = None
    enableK8sTokenAuth: bool | None = None


class AutoscalerOptions(Strict):
    version: Literal["v1", "v2"] | None = None
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] | None = None
    idleTimeoutSeconds: int | None = None
    image: str | None = None
    imagePullPolicy: Literal["Always", "IfNotPresent", "Never"] | None = None
    resources: Plain | None = None
    securityContext: Plain | None = None
    env: list[Plain] | None = None
    envFrom: list[Plain] | None = None
    volumeMounts: list[Plain] | None = None


class Group(Strict):
    rayStartParams: Strings
    template: Plain


class HeadGroup(Group):
    serviceType: Literal["ClusterIP", "NodePort", "LoadBalancer"] | None = None
    headService: Plain | None = None
    enableIngress: bool | None = None


class WorkerGroup(Group):
    groupName: str
    replicas: int | None = Field(None, ge=0)
    minReplicas: int = Field(ge=0)
    maxReplicas: int = Field(ge=0)
    numOfHosts: int | None = Field(None, ge=1)
    idleTimeoutSeconds: int | None = None
    scaleStrategy: Plain | None = None


class RayClusterSpec(Strict):
    rayVersion: str
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup] = []
    authOptions: AuthOptions | None = None
    enableInTreeAutoscaling: bool | None = None
    autoscalerOptions: AutoscalerOptions | None = None
    headServiceAnnotations: Strings | None = None
    gcsFaultToleranceOptions: Plain | None = None
    managedBy: str | None = None
    suspend: bool | None = None


class RayJobSpec(Strict):
    entrypoint: str
    rayClusterSpec: RayClusterSpec
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] | None = None
    submitterPodTemplate: Plain | None = None
    submitterConfig: Plain | None = None
    backoffLimit: int | None = None
    activeDeadlineSeconds: int | None = Field(None, gt=0)
    shutdownAfterJobFinishes: bool | None = None
    ttlSecondsAfterFinished: int | None = None
    runtimeEnvYAML: str | None = None
    jobId: str | None = None
    metadata: Strings | None = None
    entrypointNumCpus: float | None = None
    entrypointNumGpus: float | None = None
    entrypointResources: str | None = None
    suspend: bool | None = None


class UpgradeStrategy(Strict):
    type: Literal["NewCluster", "NewClusterWithIncrementalUpgrade", "None"] | None = None


class RayServiceSpec(Strict):
    serveConfigV2: str
    rayClusterConfig: RayClusterSpec
    upgradeStrategy: UpgradeStrategy | None = None
    serveService: Plain | None = None
    excludeHeadPodFromServeSvc: bool | None = None
    rayClusterDeletionDelaySeconds: int | None = Field(None, ge=0)


class Resource(Strict):
    apiVersion: Literal["ray.io/v1"]
    metadata: Plain


class RayCluster(Resource):
    kind: Literal["RayCluster"]
    spec: RayClusterSpec


class RayJob(Resource):
    kind: Literal["RayJob"]
    spec: RayJobSpec


class RayService(Resource):
    kind: Literal["RayService"]
    spec: RayServiceSpec


KINDS: dict[str, type[RayCluster | RayJob | RayService]] = {
    "RayCluster": RayCluster,
    "RayJob": RayJob,
    "RayService": RayService,
}


def cluster_of(resource: RayCluster | RayJob | RayService) -> RayClusterSpec:
    """The cluster that a resource asks for."""
    if isinstance(resource, RayCluster):
        return resource.spec
    if isinstance(resource, RayJob):
        return resource.spec.rayClusterSpec
    return resource.spec.rayClusterConfig
