"""Which properties there are, for which types of units, and how each is read and written.

Names and types are those of systemd 252, and some later ones that an older manager refuses by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from . import _names as names, _readers as read, _readers_units as units, _writers as write
from ._numbers import INFINITY, integer, nanoseconds, scaled, share
from ._readers import Reader
from ._writers import Writer


class Kind(NamedTuple):
    """How a property is understood: from text, and from Python values."""

    read: Reader
    write: Writer = write.plain


Table = dict[str, Kind]


def each(kind: Kind, of: str) -> Table:
    return dict.fromkeys(of.split(), kind)


TEXT = Kind(read.text)
BOOLEAN = Kind(read.boolean)
SPAN = Kind(read.span, write.seconds)
WORDS = Kind(read.words, write.words)
MODE = Kind(read.mode, write.octal)
UNSIGNED = Kind(read.u32, write.whole)
SIGNED = Kind(read.i32, write.whole)
SIGNAL = Kind(read.signal)
ALLOW_LIST = Kind(read.one("(bas)", read.allow_list), write.allow_list)
COMMAND = Kind(units.command, write.commands)

RESOURCE_CONTROL: Table = {
    **each(TEXT, "DevicePolicy Slice ManagedOOMSwap ManagedOOMMemoryPressure ManagedOOMPreference "
                 "MemoryPressureWatch DelegateSubgroup"),
    "ManagedOOMMemoryPressureLimit": Kind(read.one("u", lambda text: scaled(share(text))), write.fraction),
    **each(BOOLEAN, "CPUAccounting MemoryAccounting IOAccounting BlockIOAccounting TasksAccounting IPAccounting "
                    "CoredumpReceive"),
    **each(Kind(read.weight(1, 10000, idle=0), write.whole), "CPUWeight StartupCPUWeight"),
    **each(Kind(read.weight(1, 10000), write.whole), "IOWeight StartupIOWeight"),
    **each(Kind(read.weight(2, 262144), write.whole), "CPUShares StartupCPUShares"),
    **each(Kind(read.weight(10, 1000), write.whole), "BlockIOWeight StartupBlockIOWeight"),
    **each(Kind(read.one("ay", read.cpu_set), write.numbers),
           "AllowedCPUs StartupAllowedCPUs AllowedMemoryNodes StartupAllowedMemoryNodes"),
    "DisableControllers": WORDS,
    "Delegate": Kind(read.delegate, write.plain_words),
    **each(Kind(read.limit(0), write.whole), "MemoryMin MemoryLow DefaultMemoryLow DefaultMemoryMin "
                                             "StartupMemoryLow DefaultStartupMemoryLow"),
    **each(Kind(read.limit(INFINITY), write.whole),
           "MemoryHigh MemoryMax MemorySwapMax MemoryZSwapMax MemoryLimit StartupMemoryHigh StartupMemoryMax "
           "StartupMemorySwapMax StartupMemoryZSwapMax"),
    "TasksMax": Kind(read.limit(INFINITY, integer), write.whole),
    "CPUQuota": Kind(read.cpu_quota, write.fraction),
    "CPUQuotaPeriodSec": Kind(read.span_or_unset, write.seconds),
    "DeviceAllow": Kind(read.many("(ss)", read.device_access), write.items(write.spaced)),
    **each(Kind(read.many("(st)", read.device_and(read.bandwidth, "a bandwidth")), write.items(write.spaced)),
           "IOReadBandwidthMax IOWriteBandwidthMax IOReadIOPSMax IOWriteIOPSMax "
           "BlockIOReadBandwidth BlockIOWriteBandwidth"),
    **each(Kind(read.many("(st)", read.device_and(integer, "a weight")), write.items(write.spaced)),
           "IODeviceWeight BlockIODeviceWeight"),
    "IODeviceLatencyTargetSec": Kind(read.device_latency, write.items(write.spaced_seconds)),
    **each(Kind(read.one("a(iayu)", units.addresses), write.addresses), "IPAddressAllow IPAddressDeny"),
    **each(Kind(read.many("s", str), write.assignments), "IPIngressFilterPath IPEgressFilterPath"),
    "BPFProgram": Kind(read.many("(ss)", read.bpf_program), write.items("{}:{}".format)),
    **each(Kind(read.many("(iiqq)", units.bind_rule), write.assignments), "SocketBindAllow SocketBindDeny"),
    "RestrictNetworkInterfaces": ALLOW_LIST,
}  # fmt: skip

EXECUTION: Table = {
    **each(TEXT, "User Group UtmpIdentifier UtmpMode PAMName TTYPath WorkingDirectory RootDirectory SyslogIdentifier "
                 "ProtectSystem ProtectHome SELinuxContext RootImage RootVerity RuntimeDirectoryPreserve Personality "
                 "KeyringMode ProtectProc ProcSubset NetworkNamespacePath IPCNamespacePath LogNamespace"),
    **each(BOOLEAN, "IgnoreSIGPIPE TTYVHangup TTYReset TTYVTDisallocate PrivateTmp PrivateDevices PrivateNetwork "
                    "PrivateUsers PrivateMounts PrivateIPC NoNewPrivileges SyslogLevelPrefix MemoryDenyWriteExecute "
                    "RestrictRealtime DynamicUser RemoveIPC ProtectKernelTunables ProtectKernelModules "
                    "ProtectKernelLogs ProtectClock ProtectControlGroups MountAPIVFS CPUSchedulingResetOnFork "
                    "LockPersonality ProtectHostname RestrictSUIDSGID RootEphemeral SetLoginEnvironment MemoryKSM"),
    **each(WORDS, "ReadWriteDirectories ReadOnlyDirectories InaccessibleDirectories ReadWritePaths ReadOnlyPaths "
                  "InaccessiblePaths ExecPaths NoExecPaths ExecSearchPath ExtensionDirectories "
                  "ConfigurationDirectory SupplementaryGroups SystemCallArchitectures"),
    **each(Kind(read.named(names.LOG_LEVELS, "a log level", 7)), "SyslogLevel LogLevelMax"),
    "SyslogFacility": Kind(read.named(names.LOG_FACILITIES, "a log facility", 127)),
    "SecureBits": Kind(read.one("i", names.secure_bits), write.plain_words),
    "CPUSchedulingPolicy": Kind(read.named(names.CPU_SCHEDULING, "a scheduling policy", 2**31 - 1)),
    **each(SIGNED, "CPUSchedulingPriority OOMScoreAdjust"),
    "CoredumpFilter": Kind(read.one("t", names.core_mappings), write.plain_words),
    "Nice": Kind(read.between(-20, 19), write.whole),
    "SystemCallErrorNumber": Kind(read.one("i", names.errno_or_kill)),
    "IOSchedulingClass": Kind(read.named(names.IO_SCHEDULING, "an I/O scheduling class", 8)),
    "IOSchedulingPriority": Kind(read.between(0, 7), write.whole),
    **each(MODE, "RuntimeDirectoryMode StateDirectoryMode CacheDirectoryMode LogsDirectoryMode "
                 "ConfigurationDirectoryMode UMask"),
    "TimerSlackNSec": Kind(read.one("t", nanoseconds), write.nanoseconds),
    "LogRateLimitIntervalSec": SPAN,
    **each(UNSIGNED, "LogRateLimitBurst TTYRows TTYColumns"),
    "MountFlags": Kind(read.named(names.PROPAGATION, "a propagation", None, "t")),
    **each(Kind(read.c_words, write.words), "Environment UnsetEnvironment PassEnvironment"),
    "EnvironmentFile": Kind(read.many("(sb)", read.environment_file, "EnvironmentFiles"), write.assignments),
    "SetCredential": Kind(read.many("(say)", read.set_credential), write.items(write.credential)),
    "SetCredentialEncrypted":
        Kind(read.many("(say)", read.set_encrypted_credential), write.items(write.encrypted_credential)),
    **each(Kind(read.many("(ss)", read.load_credential), write.items(write.credential_source)),
           "LoadCredential LoadCredentialEncrypted"),
    "ImportCredential": WORDS,
    "LogExtraFields": Kind(read.one("aay", lambda text: [text.encode()]), write.assignments),
    **each(Kind(read.standard_stream), "StandardInput StandardOutput StandardError"),
    "StandardInputText": Kind(read.standard_input_text),
    "StandardInputData": Kind(read.one("ay", read.from_base64), write.data),
    **dict.fromkeys(read.RLIMITS, Kind(read.resource_limit, write.limits)),
    **each(Kind(read.one("(bs)", read.security_label)), "AppArmorProfile SmackProcessLabel"),
    **each(Kind(read.one("t", names.capabilities), write.plain_words), "CapabilityBoundingSet AmbientCapabilities"),
    "CPUAffinity": Kind(read.cpu_affinity, write.numbers),
    "NUMAPolicy": Kind(read.named(names.NUMA_POLICIES, "a NUMA policy", None)),
    "NUMAMask": Kind(read.one("ay", read.numa_mask), write.numbers),
    **each(ALLOW_LIST, "RestrictAddressFamilies RestrictFileSystems SystemCallFilter SystemCallLog"),
    "RestrictNamespaces": Kind(read.one("t", read.restrict_namespaces), write.plain_words),
    **each(Kind(read.one("a(ssbt)", read.bind_paths), write.items(write.bind)), "BindPaths BindReadOnlyPaths"),
    "TemporaryFileSystem": Kind(read.one("a(ss)", read.temporary_file_systems), write.items(write.pair)),
    "RootHash": Kind(read.root_hash, write.hexadecimal),
    "RootHashSignature": Kind(read.root_hash_signature),
    "RootImageOptions": Kind(read.one("a(ss)", read.root_image_options), write.items(write.tuple_word)),
    "MountImages": Kind(read.one("a(ssba(ss))", read.mount_images), write.items(write.tuple_word)),
    "ExtensionImages": Kind(read.one("a(sba(ss))", read.extension_images), write.items(write.tuple_word)),
    **each(Kind(read.directories, write.items(write.directory)),
           "StateDirectory RuntimeDirectory CacheDirectory LogsDirectory"),
}  # fmt: skip

KILLING: Table = {
    "KillMode": TEXT,
    **each(BOOLEAN, "SendSIGHUP SendSIGKILL"),
    **each(SIGNAL, "KillSignal RestartKillSignal FinalKillSignal WatchdogSignal"),
}

SERVICE: Table = {
    **each(TEXT, "PIDFile Type ExitType Restart RestartMode BusName NotifyAccess USBFunctionDescriptors "
                 "USBFunctionStrings OOMPolicy TimeoutStartFailureMode TimeoutStopFailureMode "
                 "FileDescriptorStorePreserve"),
    **each(BOOLEAN, "PermissionsStartOnly RootDirectoryStartOnly RemainAfterExit GuessMainPID"),
    **each(SPAN, "RestartSec RestartMaxDelaySec TimeoutStartSec TimeoutStopSec TimeoutAbortSec RuntimeMaxSec "
                 "RuntimeRandomizedExtraSec WatchdogSec"),
    "TimeoutSec": Kind(read.spans("TimeoutStartSec", "TimeoutStopSec"), write.seconds),
    **each(UNSIGNED, "FileDescriptorStoreMax RestartSteps"),
    "ReloadSignal": SIGNAL,
    **each(COMMAND, "ExecCondition ExecStartPre ExecStart ExecStartPost ExecReload ExecStop ExecStopPost "
                    "ExecConditionEx ExecStartPreEx ExecStartEx ExecStartPostEx ExecReloadEx ExecStopEx "
                    "ExecStopPostEx"),
    **each(Kind(read.one("(aiai)", units.exit_statuses), write.plain_words),
           "RestartPreventExitStatus RestartForceExitStatus SuccessExitStatus"),
}  # fmt: skip

SCOPE: Table = {
    **each(SPAN, "RuntimeMaxSec RuntimeRandomizedExtraSec TimeoutStopSec"),
    **each(TEXT, "User Group OOMPolicy"),
}

SOCKET: Table = {
    **each(BOOLEAN, "Accept FlushPending Writable KeepAlive NoDelay FreeBind Transparent Broadcast PassCredentials "
                    "PassSecurity PassPacketInfo ReusePort RemoveOnStop SELinuxContextFromNet"),
    **each(SIGNED, "Priority IPTTL Mark"),
    "IPTOS": Kind(read.named(names.IP_TOS, "a type of service", 255)),
    **each(UNSIGNED, "Backlog MaxConnections MaxConnectionsPerSource KeepAliveProbes TriggerLimitBurst"),
    **each(MODE, "SocketMode DirectoryMode"),
    **each(Kind(read.i64, write.whole), "MessageQueueMaxMessages MessageQueueMessageSize"),
    **each(SPAN, "TimeoutSec KeepAliveTimeSec KeepAliveIntervalSec DeferAcceptSec TriggerLimitIntervalSec"),
    **each(Kind(read.size, write.whole), "ReceiveBuffer SendBuffer PipeSize"),
    **each(COMMAND, "ExecStartPre ExecStartPost ExecReload ExecStopPost"),
    **each(TEXT, "SmackLabel SmackLabelIPIn SmackLabelIPOut TCPCongestion BindToDevice BindIPv6Only "
                 "FileDescriptorName SocketUser SocketGroup Timestamping"),
    "Symlinks": WORDS,
    "SocketProtocol": Kind(read.one("i", units.protocol)),
    **each(Kind(units.listen, write.assignments),
           "ListenStream ListenDatagram ListenSequentialPacket ListenNetlink ListenSpecial ListenMessageQueue "
           "ListenFIFO ListenUSBFunction"),
}  # fmt: skip

TIMER: Table = {
    **each(BOOLEAN, "WakeSystem RemainAfterElapse Persistent OnTimezoneChange OnClockChange FixedRandomDelay"),
    **each(SPAN, "AccuracySec RandomizedDelaySec"),
    **each(Kind(units.monotonic_timer, write.seconds),
           "OnActiveSec OnBootSec OnStartupSec OnUnitActiveSec OnUnitInactiveSec"),
    "OnCalendar": Kind(units.listed("TimersCalendar"), write.assignments),
}  # fmt: skip

PATH: Table = {
    "MakeDirectory": BOOLEAN,
    "DirectoryMode": MODE,
    **each(Kind(units.listed("Paths"), write.assignments),
           "PathExists PathExistsGlob PathChanged PathModified DirectoryNotEmpty"),
    "TriggerLimitBurst": UNSIGNED,
    "TriggerLimitIntervalSec": SPAN,
}  # fmt: skip

MOUNT: Table = {
    **each(TEXT, "What Where Options Type"),
    "TimeoutSec": SPAN,
    "DirectoryMode": MODE,
    **each(BOOLEAN, "SloppyOptions LazyUnmount ForceUnmount ReadwriteOnly"),
}

AUTOMOUNT: Table = {**each(TEXT, "Where ExtraOptions"), "DirectoryMode": MODE, "TimeoutIdleSec": SPAN}

_CHECKS = """
    Architecture Firmware Virtualization Host KernelCommandLine KernelVersion Credential Environment Security Capability
    ACPower NeedsUpdate FirstBoot PathExists PathExistsGlob PathIsDirectory PathIsSymbolicLink PathIsMountPoint
    PathIsReadWrite PathIsEncrypted DirectoryNotEmpty FileNotEmpty FileIsExecutable User Group ControlGroupController
    CPUs CPUFeature Memory MemoryPressure CPUPressure IOPressure OSRelease
"""
#: systemd.unit(5), "Conditions and Asserts".
CHECKS = tuple(_CHECKS.split())

ALL_UNITS: Table = {
    **each(TEXT, "Description SourcePath OnSuccessJobMode OnFailureJobMode JobTimeoutAction JobTimeoutRebootArgument "
                 "StartLimitAction FailureAction SuccessAction RebootArgument CollectMode"),
    **each(BOOLEAN, "StopWhenUnneeded RefuseManualStart RefuseManualStop AllowIsolate IgnoreOnIsolate "
                    "DefaultDependencies SurviveFinalKillSignal"),
    **each(SPAN, "JobTimeoutSec JobRunningTimeoutSec StartLimitIntervalSec"),
    "StartLimitBurst": UNSIGNED,
    **each(Kind(units.action_exit_status, write.whole), "SuccessActionExitStatus FailureActionExitStatus"),
    **each(WORDS, "Documentation RequiresMountsFor Markers "
                  "Requires Requisite Wants BindsTo PartOf Upholds RequiredBy RequisiteOf WantedBy BoundBy UpheldBy "
                  "ConsistsOf Conflicts ConflictedBy Before After OnSuccess OnSuccessOf OnFailure OnFailureOf Triggers "
                  "TriggeredBy PropagatesReloadTo ReloadPropagatedFrom PropagatesStopTo StopPropagatedFrom "
                  "JoinsNamespaceOf References ReferencedBy InSlice SliceOf"),
    **{
        f"{kind}{check}": Kind(units.condition(kind), write.assignments)
        for kind in ("Condition", "Assert")
        for check in CHECKS
    },
}  # fmt: skip

#: Type of unit → its properties.
TABLES: Mapping[str, Table] = {
    "service": {**ALL_UNITS, **SERVICE, **KILLING, **EXECUTION, **RESOURCE_CONTROL},
    "scope": {**ALL_UNITS, **SCOPE, **KILLING, **RESOURCE_CONTROL},
    "slice": {**ALL_UNITS, **RESOURCE_CONTROL},
    "socket": {**ALL_UNITS, **SOCKET, **KILLING, **EXECUTION, **RESOURCE_CONTROL},
    "timer": {**ALL_UNITS, **TIMER},
    "path": {**ALL_UNITS, **PATH},
    "mount": {**ALL_UNITS, **MOUNT, **KILLING, **EXECUTION, **RESOURCE_CONTROL},
    "automount": {**ALL_UNITS, **AUTOMOUNT},
}
