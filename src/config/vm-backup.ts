const schemes: Readonly<Record<string, string>> = { aws: "s3", s3: "s3", azure: "azure", gcp: "gs", gcs: "gs", file: "file" };

interface VmBackup {
  readonly metadata: { readonly name: string; readonly namespace?: string };
  readonly spec: {
    readonly vmPath: string;
    readonly schedule: string;
    readonly destination: { readonly provider: string; readonly bucket: string };
    readonly retention?: Readonly<Record<string, number>>;
    readonly incrementalBackup?: { readonly enabled?: boolean };
    readonly carbonAware?: { readonly enabled?: boolean; readonly maxIntensity?: number };
    readonly notifications?: readonly {
      readonly type: string;
      readonly destination?: string;
      readonly webhook?: string;
      readonly addresses?: readonly string[];
    }[];
  };
}

/** The schedule that a VMBackup document stands for, in the shape of an entry of `schedules`. Its shape was checked. */
export function scheduleFromVmBackup(document: unknown): Record<string, unknown> {
  const { metadata, spec } = document as VmBackup;
  const scheme = schemes[spec.destination.provider] ?? spec.destination.provider;
  const alerts = (spec.notifications ?? []).flatMap(({ type, destination, webhook, addresses }) =>
    (addresses ?? [destination ?? webhook ?? ""]).map((target) => ({ [type]: target })),
  );
  return {
    name: metadata.namespace === undefined ? metadata.name : `${metadata.namespace}-${metadata.name}`,
    cron: spec.schedule,
    vms: [spec.vmPath],
    destination: `${scheme}://${spec.destination.bucket}`,
    ...(spec.retention && Object.keys(spec.retention).length > 0 ? { retention: spec.retention } : {}),
    ...(spec.incrementalBackup?.enabled ? { incremental: true } : {}),
    ...(spec.carbonAware?.enabled ? { carbon: { maxIntensity: spec.carbonAware.maxIntensity } } : {}),
    ...(alerts.length > 0 ? { alerts } : {}),
  };
}
