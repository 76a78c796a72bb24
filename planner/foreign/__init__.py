"""Planning for systems that are not PAME's, from files of confidences, answers and times."""
