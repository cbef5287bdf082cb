/** Version 2: what the last export of a VM recorded of each disk, as JSON: how much the next one must read follows from it. */
export const lastDisks = `
ALTER TABLE protections ADD COLUMN last_disks TEXT;
`;
