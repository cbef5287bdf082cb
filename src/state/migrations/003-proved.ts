/** Version 3: whether the export of a restore point has proved it. What was recorded before is taken for proved, as it was then. */
export const proved = `
ALTER TABLE artifacts ADD COLUMN proved INTEGER NOT NULL DEFAULT 1 CHECK (proved IN (0, 1));
`;
