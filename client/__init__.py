"""One hospital: from DICOM to an update."""
